"""The group `augment`: what is done to an example before it is learnt from. The operations are here, what a YAML may name in
augmentations/."""

from typing import ClassVar


class Augment:
    room: ClassVar[str] = "augmentations"
