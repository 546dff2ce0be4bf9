"""The group `augment`: what is done to an example before it is learnt from. The operations are here, what a YAML may name in
augmentations/."""

from typing import ClassVar


class Augment:
    room: ClassVar[str] = "augmentations"
    group: ClassVar[str] = "augment"  # of YAMLs, as a part inside another is chosen: augment@objective.strong=typos
