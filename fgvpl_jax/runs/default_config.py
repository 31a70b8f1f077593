"""Every field that a run has, with the defaults of the paper; benchmarks change only what differs.

All equation numbers are the paper's. Command line: `--config.shots=8 --config.data.root=~/data`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fgvpl_jax import defaults
from fgvpl_jax.data import benchmark_named


def benchmark_config(name: str) -> ConfigDict:
    """The paper's settings for a benchmark of the table, wherever it lies.

    Raises:
        UserError: If the table has no such benchmark.
    """
    benchmark = benchmark_named(name)
    config = get_config()
    config.benchmark = name
    config.data.split_file = benchmark.split_file
    config.data.image_dir = benchmark.image_dir
    config.data.templates = benchmark.templates
    return config


def get_config() -> ConfigDict:
    """The paper's settings, without data."""
    config = ConfigDict()
    config.method = "fg_vpl"  # a key of fgvpl_jax.methods.METHODS
    config.clip = "openai/clip-vit-base-patch16"  # a hub id or a local directory
    config.benchmark = ""
    config.shots = 16  # training images per class; None takes all
    config.allow_fewer = False  # accept classes with fewer images than shots
    config.seed = 1  # draws the images, initialises, shuffles, augments

    config.data = ConfigDict()
    # "coop": as CoOp's users have it; "tfds": as TFDS prepared it; "folder": class folders or a
    # list of photos; "shapes": drawn.
    config.data.source = "coop"
    # coop: the folder that holds the benchmarks' folders; tfds: its data folder; folder: the class
    # folders, or the list.
    config.data.root = "."
    config.data.split_file = ""  # coop, tfds: CoOp's, below root
    config.data.image_dir = ""  # coop: below root; the split file's paths start here
    config.data.few_shot_file = ""  # another run's few_shot.json, instead of a draw by the seed
    config.data.templates = ("a photo of a {}.",)
    # Photos as evaluation sees them are kept from run to run; "" is the user's cache folder.
    config.data.image_cache_dir = ""
    config.data.image_cache_gb = 20.0  # the least recently used make room; 0 keeps none

    # Training photos stay on every device, and are cropped there, where all of them, each as large
    # as the largest, take no more than this with what a step needs beside them; otherwise they are
    # decoded anew in every epoch. The photos that a cache is built from may take as much again.
    config.data.resident_gb = 2.0

    # Section 3.1
    config.num_prompts = defaults.NUM_PROMPTS
    config.connectivity = (
        defaults.CONNECTIVITY
    )  # of the largest area: 2 = 8 neighbours, 1 = 4 neighbours

    # Section 3.2
    config.text_residual_ratio = defaults.TEXT_RESIDUAL_RATIO  # alpha of Eq. 10
    config.object_logit_weight = defaults.OBJECT_LOGIT_WEIGHT  # beta of Eq. 19
    config.cache_logit_weight = defaults.CACHE_LOGIT_WEIGHT  # lambda of Eq. 19, in training
    # Lambda for evaluation is chosen from these on the validation split; () keeps the above.
    config.cache_logit_weight_grid = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    config.cache_refresh = "epoch"  # features of the cache: anew each "epoch", or "once"
    config.cache_leave_one_out = False  # in training, keep an image from matching itself
    # Eq. 16: "class_token" (f_O) or "object_patches"
    config.object_query = defaults.OBJECT_QUERY

    # Each None is the method's own recipe for this benchmark and these shots (FG-VPL's: section
    # 4.2); config.json has what it came to.
    config.epochs = placeholder(int)
    config.batch_size = placeholder(int)  # at most the number of training images
    config.learning_rate = placeholder(float)
    config.weight_decay = placeholder(float)

    # Without a test split: folds of the cross-validated estimate, and whether probabilities are
    # tempered by what validation (or the folds) showed of them.
    config.cv_folds = 4
    config.calibrate = True

    config.eval_batch_size = 256
    # Images in one forward and backward pass, whose gradients are summed up to a batch: less
    # memory, the same step. 0 is the whole batch; but one CPU takes fg_vpl's, of up to 4,096 photos
    # in all, and fvp's in parts that suit its caches (2 images of ViT-B/16).
    config.microbatch = 0
    # Activations anew in the backward pass, attention weights anew for the roll-out: less memory,
    # more time.
    config.rematerialise = False
    # Of the image encoder's products and activations: "float32" or "bfloat16". Parameters, object
    # masks, logits and losses are float32.
    config.compute_dtype = "float32"
    config.checkpoint_every_epochs = 10
    return config
