"""Default values of named settings, each written here and nowhere else.

The config's fields and the arguments of the public classes and functions take their defaults from
here. Methods take the settings of the paper as required arguments.
"""

# Section 3.1
NUM_PROMPTS = 1  # m of Eq. 2
PROMPT_LAYER = 1  # first layer that reads the prompt, from 1
AUGMENTED_PASSES = 10  # distinct passes where the prompt joins above layer 1
ATTENTION_MAP = "product"  # Eq. 6; the other maps are in `visual_prompt.ATTENTION_MAPS`
OWN_PHOTOS_ATTENTION_MAP = "border_contrast"  # docs/ablations.md has the comparison
CONNECTIVITY = 2  # when finding the largest area: 2 = 8 neighbours, 1 = 4 neighbours

# Section 3.2
TEXT_RESIDUAL_RATIO = 0.05  # alpha of Eq. 10
OBJECT_LOGIT_WEIGHT = 0.5  # beta of Eq. 19
CACHE_LOGIT_WEIGHT = 1.0  # lambda of Eq. 19
CACHE_VOTES = "sum"  # Eq. 18; "mean" makes lambda independent of the number of photos
OBJECT_QUERY = "class_token"  # Eq. 16: "class_token" (f_O) or "object_patches"

# Predictions
TOP_K = 5  # most probable classes that a prediction names
FALSE_REJECTION_RATE = 0.05  # share of photos of the classes that "none of these" may reject

# Several labels a photo
LABEL_METHOD = "kernel_ridge_plain"  # unless a method is named

# method="auto"
MINUTES = 5.0  # time for trying methods
# Tried before all other methods, favoured by the prior of a mix, and taken where photos cannot
# compare methods.
FAVOURITE = "gda_pool"
