"""The names that recall tasks ask about: common English nouns, one word each."""

import random

_WORDS = """
acorn almond amber anchor anvil apple apron arrow aspen atlas badge badger balcony bamboo banjo barley
barrel basil basket beacon beaver bench berry birch bishop bison blanket bonnet bottle boulder bracelet
bramble branch breeze bridge broom bucket buckle buffalo burrow butter button cabin cactus camel camera
candle canoe canyon caravan carpet carrot castle cavern cedar cello cellar chalk cherry chestnut chimney
chisel cinder cinnamon citrus clarinet clover cobra coconut comet compass copper coral cotton cottage
cougar cradle crane crater cricket crown crystal cuckoo cushion cypress dagger daisy dancer desert
diamond dolphin donkey dragon drawer drum eagle easel echo elbow elder elm ember emerald engine falcon
fiddle fennel fern ferry finch flagon flannel flask flute forest fossil fountain fox funnel galaxy
gander garlic garnet gazelle geyser ginger giraffe glacier goblet goose gorilla granite grape gravel
guitar hammer hammock harbour harp hatchet hawk hazel hedge helmet heron hickory hinge honey hornet
hurdle iceberg indigo iris island ivory ivy jacket jackal jaguar jasmine jasper jersey jigsaw jungle
juniper kennel kettle kitten koala ladder lagoon lantern lapis lark lemon lentil leopard lettuce lilac
lily lime linen lion lizard lobster locket lotus lynx magnet mallard mango maple marble meadow melon
merlin meteor mitten monkey moose mosaic mule muffin nectar needle nettle nickel nutmeg oak oasis oboe
olive onion onyx opal orange orchard orchid osprey ostrich otter owl oyster paddle palace panda panther
parrot parsley peacock peanut pearl pebble pelican pencil penguin pepper piano pigeon pillow pine pirate
planet plum pocket pony poplar poppy prairie prism puffin pumpkin puppet puzzle pyramid quail quartz
quill rabbit raccoon radish raisin raven ribbon robin rocket rosemary ruby saddle saffron sail salmon
sandal sapphire saucer scarf sequoia shovel silver skunk slipper snail sofa sparrow spider spinach
spruce squirrel stallion starling statue stork sugar summit sunset swallow swan sycamore tablet
tambourine tango tapestry teapot temple thimble thistle thunder tiger timber toast topaz torch tractor
trellis trombone trumpet tulip tundra tunnel turbine turkey turnip turtle umbrella unicorn urchin valley
vanilla velvet violet violin volcano vulture waffle wagon walnut walrus warbler whale wheat whistle
willow window winter wolf wombat yak yarrow zebra zephyr zinc zither
"""

NAMES: tuple[str, ...] = tuple(_WORDS.split())


class NamePool:
    """Draws names without replacement, so that one document never uses a name for two things.

    Parameters
    ----------
    rng
        Source of the order.
    """

    def __init__(self, rng: random.Random) -> None:
        self._names = list(NAMES)
        rng.shuffle(self._names)

    def __len__(self) -> int:
        return len(self._names)

    def draw(self, count: int) -> list[str]:
        """Draw `count` names that were not drawn before.

        Raises
        ------
        ValueError
            When fewer than `count` names are left.
        """
        if count > len(self._names):
            raise ValueError(f"{count} names asked for, but only {len(self._names)} of {len(NAMES)} are left")
        drawn, self._names = self._names[:count], self._names[count:]
        return drawn
