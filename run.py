"""Trains, measures and uses FG-VPL: `python run.py --config=configs/eurosat.py --workdir=W`."""

from fgvpl_jax.commands.command_line import run

if __name__ == "__main__":
    run()
