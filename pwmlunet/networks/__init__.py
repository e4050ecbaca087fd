"""Networks: a variant is a config class and one line in the table."""

from pwmlunet.networks.base import NetworkConfig
from pwmlunet.networks.trident import TridentConfig
from pwmlunet.networks.unet import UNetConfig

NETWORKS: dict[str, type[NetworkConfig]] = {"trident": TridentConfig, "unet": UNetConfig}
