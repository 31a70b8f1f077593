"""The paper's settings that have a name in the code: the one place where each default is written.

The fields of the config and the arguments of the public classes take their defaults from here.
Methods take them as required arguments.
"""

# Section 3.1
NUM_PROMPTS = 1  # m of Eq. 2
CONNECTIVITY = 2  # of the largest area: 2 = 8 neighbours, 1 = 4 neighbours

# Section 3.2
TEXT_RESIDUAL_RATIO = 0.05  # alpha of Eq. 10
OBJECT_LOGIT_WEIGHT = 0.5  # beta of Eq. 19
CACHE_LOGIT_WEIGHT = 1.0  # lambda of Eq. 19
OBJECT_QUERY = "class_token"  # Eq. 16: "class_token" (f_O) or "object_patches"
