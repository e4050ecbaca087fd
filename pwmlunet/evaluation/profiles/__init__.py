"""How others counted, so that a published number can be set beside ours, always next to the honest one."""

from pwmlunet.evaluation.profiles.challenges import BRATS_LESIONWISE, ISLES, WMH
from pwmlunet.evaluation.profiles.counting import Profile
from pwmlunet.evaluation.profiles.papers import FCI_LACI, PRIORITY, RS_RCNN, TRIDENT

_ALL = (TRIDENT, RS_RCNN, PRIORITY, FCI_LACI, WMH, ISLES, BRATS_LESIONWISE)
PROFILES: dict[str, Profile] = {profile.name: profile for profile in _ALL}
"""By the name that `pwml_evaluate --profile` takes."""
