"""The files that the benchmark writes can be read as ImageNet and as a checkpoint."""

from benchmarks.synthetic_imagenet import write_clip, write_photos
from fgvpl_jax import load_clip
from fgvpl_jax.clip.config import VisionConfig
from fgvpl_jax.data import benchmark_named
from fgvpl_jax.data.coop import load_coop


def test_photos_and_checkpoint_are_read(tmp_path):
    config = VisionConfig(
        width=32, num_layers=2, num_heads=2, mlp_width=64, image_size=16, patch_size=8, embed_dim=24
    )
    write_clip(tmp_path / "clip", config)
    clip = load_clip(tmp_path / "clip")
    assert clip.vision.config == config
    imagenet = benchmark_named("imagenet")
    longest = max(imagenet.class_names, key=len)
    clip.tokenize([template.format(longest) for template in imagenet.templates])

    write_photos(tmp_path / "imagenet", 8, {"train": 2, "val": 1})
    dataset = load_coop(str(tmp_path), "", imagenet.image_dir, imagenet)
    assert dataset.class_names == imagenet.class_names
    assert (len(dataset.train), len(dataset.test)) == (2000, 1000)
    assert dataset.train.image(1999).size == (8, 8)
