"""Networks: a variant is a config class and one line in the table."""

from pwmlunet.networks.base import NetworkConfig
from pwmlunet.networks.priority import PriorityConfig
from pwmlunet.networks.resunet_3d import ResUNet3dConfig
from pwmlunet.networks.trident import TridentConfig
from pwmlunet.networks.two_stage import TwoStageConfig
from pwmlunet.networks.unet import UNetConfig

NETWORKS: dict[str, type[NetworkConfig]] = {
    "priority": PriorityConfig,
    "resunet_3d": ResUNet3dConfig,
    "trident": TridentConfig,
    "two_stage": TwoStageConfig,
    "unet": UNetConfig,
}
