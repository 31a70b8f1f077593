"""The flags of the command. `modes.py` says which mode takes which of them."""

from absl import flags
from ml_collections import config_flags

from fgvpl_jax import defaults
from fgvpl_jax.commands.shipped_configs import ConfigFileParser

CONFIG = config_flags.DEFINE_config_file(
    "config",
    None,
    "Python file with get_config(), such as configs/eurosat.py; --config.FIELD=VALUE overrides one "
    "of its fields.",
)
flags.FLAGS["config"].parser = ConfigFileParser("config")
WORKDIR = flags.DEFINE_string("workdir", None, "Folder of the run, of the sweep or of the report.")

TENSORBOARD = flags.DEFINE_bool(
    "tensorboard", False, "train: also write TensorBoard event files to the workdir."
)
WANDB = flags.DEFINE_string("wandb", None, "train: Weights & Biases project to log to as well.")

# For jobs of several processes that neither a TPU VM nor Slurm describes; see docs/multi_gpu.md.
COORDINATOR = flags.DEFINE_string(
    "coordinator_address", None, "train, evaluate: HOST:PORT of process 0 of this job."
)
NUM_PROCESSES = flags.DEFINE_integer(
    "num_processes", None, "train, evaluate: number of processes of this job."
)
PROCESS_ID = flags.DEFINE_integer(
    "process_id", None, "train, evaluate: number of this process, counted from 0."
)

TOP_K = flags.DEFINE_integer(
    "top_k", defaults.TOP_K, "predict: number of classes to name for each photo."
)
JSON = flags.DEFINE_bool("json", False, "predict: print JSON lines instead of text.")
OVERLAY_DIR = flags.DEFINE_string(
    "overlay_dir",
    None,
    "predict: folder for a picture of each photo and, if found, its object.",
)
EVIDENCE = flags.DEFINE_string(
    "evidence",
    None,
    "predict: class whose evidence is computed for each photo, for --json and --overlay_dir; "
    "`predicted` takes each photo's most probable class. About 100 times the work.",
)
REGIONS = flags.DEFINE_bool(
    "regions", False, "predict: also name the class of every area of a photo that stands out."
)
COCO = flags.DEFINE_string(
    "coco", None, "predict: file for the regions of all photos in COCO's JSON format."
)

HOST = flags.DEFINE_string("host", "127.0.0.1", "serve: address to listen at.")
TOKEN_FILE = flags.DEFINE_string(
    "token_file",
    None,
    "serve: file with a secret; programs that send it may add, rename and remove classes.",
)
PORT = flags.DEFINE_integer("port", 7860, "serve: port to listen at.")

OUTPUT = flags.DEFINE_string(
    "output", None, "export: file or folder to write; it must not exist yet."
)
FORMAT = flags.DEFINE_enum(
    "format",
    "fgvpl",
    ["fgvpl", "hf", "onnx", "onnx_int8"],
    "export: `fgvpl` writes a file for jax, `onnx` a file for onnxruntime, `onnx_int8` a smaller "
    "one whose answers can differ, `hf` a folder with the adapted CLIP for transformers.",
)
PUSH_TO_HUB = flags.DEFINE_string(
    "push_to_hub",
    None,
    "export: owner/name of a repository on the Hugging Face hub to upload the folder of "
    "--format=hf to; a new one is private.",
)
