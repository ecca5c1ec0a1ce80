"""The attribute network at the size at which PyTorch is compared with it."""

from htnet_jax.models import AttributeNet

# The fewest blocks that have all: with and without a skip of their own.
SMALL = AttributeNet(
    num_classes=3,
    width=4,
    depth=10,
    frames=4,
    image_size=16,
    features=6,
    projection=5,
    text_width=7,
    dropout=0.0,
)
