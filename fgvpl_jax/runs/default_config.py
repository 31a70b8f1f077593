"""Defines every field of a run's config, with the defaults of the paper.

A benchmark's config changes only what differs. All equation numbers are the paper's. To
set fields on the command line: `--config.shots=8 --config.data.root=~/data`.
"""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from fgvpl_jax import defaults
from fgvpl_jax.data import benchmark_named


def benchmark_config(name: str) -> ConfigDict:
    """Returns the paper's settings for a benchmark, without the location of its data.

    Args:
        name: Key of `fgvpl_jax.data.BENCHMARKS`.
    Raises:
        UserError: If there is no such benchmark.
    """
    benchmark = benchmark_named(name)
    config = get_config()
    config.benchmark = name
    config.data.split_file = benchmark.split_file
    config.data.image_dir = benchmark.image_dir
    config.data.templates = benchmark.templates
    return config


def folder_config() -> ConfigDict:
    """Returns the settings for your own photos, without their location.

    They differ from the paper's in four ways: the best method that can be trained in five minutes
    is chosen, all photos are training photos, the object mask is cut from the map that finds
    objects on photographs, and values are chosen by likelihood, because the accuracy on few photos
    is too coarse.
    """
    config = get_config()
    config.benchmark = "folder"
    config.data.source = "folder"
    config.method = "auto"
    config.shots = placeholder(int)  # all photos
    config.attention_map = defaults.OWN_PHOTOS_ATTENTION_MAP
    config.selection_rule = "likelihood"
    return config


def get_config() -> ConfigDict:
    """Returns the paper's settings, without data."""
    config = ConfigDict()
    config.method = "fg_vpl"  # a key of fgvpl_jax.methods.METHODS, or "auto" for the best of them
    config.minutes = defaults.MINUTES  # time in which "auto" tries methods; others do not use it
    config.clip = "openai/clip-vit-base-patch16"  # a hub id or a local directory
    config.benchmark = ""
    config.shots = 16  # training images per class; None takes all
    config.allow_fewer = False  # accept classes with fewer images than shots
    config.seed = 1  # determines the draw, initialisation, shuffling and augmentation

    config.data = data_config()

    # Section 3.1
    config.num_prompts = defaults.NUM_PROMPTS
    # First layer that reads the prompt, from 1, where the paper's prompt joins, to the last. Above
    # 1, training reads the tokens that enter that layer, of some augmented passes, and runs no
    # layer below it.
    config.prompt_layer = defaults.PROMPT_LAYER
    # Different augmented passes over the photos, which epochs repeat if prompt_layer is above 1
    config.augmented_passes = defaults.AUGMENTED_PASSES
    # Map that the object mask is cut from: the "product" of the layers' attention (Eq. 6), its
    # variants "residual", "last_3_residual" and "last", or "border_contrast", which is not in the
    # paper and is the default for your own photos.
    config.attention_map = defaults.ATTENTION_MAP
    # Which patches are connected in the object mask: 2 = with 8 neighbours, 1 = with 4 neighbours.
    config.connectivity = defaults.CONNECTIVITY

    # Section 3.2
    config.text_residual_ratio = defaults.TEXT_RESIDUAL_RATIO  # alpha of Eq. 10
    config.object_logit_weight = defaults.OBJECT_LOGIT_WEIGHT  # beta of Eq. 19
    config.cache_logit_weight = defaults.CACHE_LOGIT_WEIGHT  # lambda of Eq. 19, in training
    # Lambda for evaluation is chosen from these on the validation split; () keeps the one above.
    config.cache_logit_weight_grid = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
    # Add up the votes of a class's photos, "sum", or multiply their "mean" by 16, so that lambda
    # means the same for any number of photos: the sum over one is too small for the lambda above.
    config.cache_votes = defaults.CACHE_VOTES
    config.cache_refresh = "epoch"  # compute the cache's features every "epoch", or "once"
    config.cache_leave_one_out = False  # in training, compare no image with itself
    # A photo's object feature in Eq. 16: from the "class_token" (f_O) or the "object_patches"
    config.object_query = defaults.OBJECT_QUERY

    # None takes the method's own recipe for this benchmark and these shots (FG-VPL's: section 4.2);
    # config.json stores the resulting numbers.
    config.epochs = placeholder(int)
    config.batch_size = placeholder(int)  # at most the number of training images
    config.learning_rate = placeholder(float)
    config.weight_decay = placeholder(float)

    # How values such as λ are chosen: by the "accuracy" on the validation images, as the methods'
    # authors do, or by the "likelihood" of held-out photos, for which few photos suffice.
    config.selection_rule = "accuracy"
    config.cv_folds = 4  # most folds of the cross-validated estimate, without a test split
    config.calibrate = True  # fit a temperature on the validation images or, without, on the folds

    config.eval_batch_size = 256  # images read at once; see docs/benchmarks.md for a CPU's parts
    # Images in one forward and backward pass; gradients are summed over a batch: less memory, the
    # same step up to rounding. 0 takes the whole batch, except on a single CPU, which splits the
    # batches of fvp, and those of fg_vpl with up to 4,096 training photos, into parts that suit its
    # caches (2 images of ViT-B/16).
    config.microbatch = 0
    # Recompute activations in the backward pass and attention weights for the roll-out: less
    # memory, more time.
    config.rematerialise = False
    # Type of the image encoder's products and activations: "float32" or "bfloat16".
    # Parameters, object masks, logits and losses are float32.
    config.compute_dtype = "float32"
    config.checkpoint_every_epochs = 10
    return config


def data_config() -> ConfigDict:
    """Returns the defaults of the fields below `data`."""
    data = ConfigDict()
    # "coop": a benchmark in CoOp's layout; "tfds": a benchmark that TFDS prepared; "folder": class
    # folders or a list of photos; "shapes": drawn scenes.
    data.source = "coop"
    # "coop": folder that holds the benchmarks' folders; "tfds": data folder of TFDS; "folder":
    # folder of the class folders, or the list.
    data.root = "."
    data.split_file = ""  # "coop", "tfds": CoOp's split file, below root
    data.image_dir = ""  # "coop": below root; the paths in the split file start here
    data.few_shot_file = ""  # few_shot.json of another run, whose images replace the seed's draw
    data.templates = ("a photo of a {}.",)
    # Folder that keeps decoded photos, cropped for evaluation, between runs; "" is the user's cache
    # folder.
    data.image_cache_dir = ""
    data.image_cache_gb = 20.0  # limit; the least recently used photos are removed; 0 keeps none

    # Gigabytes. Training photos stay on every device and are cropped there if all of them, each as
    # large as the largest, take no more than this together with the memory for the crops; otherwise
    # they are decoded again in every epoch. The photos that a visual cache is built from may take
    # as much again.
    data.resident_gb = 2.0
    return data
