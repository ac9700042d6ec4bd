"""Class names of the photographs with synonyms and super-classes, for captions.

A line is ``name: synonyms; super-classes``. The first table has the 64 classes of ``photos64``, the
second one those of Caltech101 (CoOp's names, with spaces for underscores); names that are in both
are one class. A phrase that several classes list is true of all of them.
"""

_PHOTOS64 = """
German shepherd: German shepherd dog, alsatian; dog, animal, pet
Persian cat: long-haired cat, persian; cat, animal, pet
Yorkshire terrier: yorkie, terrier; dog, animal, pet
albatross: seabird, large white seabird; bird, animal
alligator: american alligator; reptile, animal, crocodilian
banana: bunch of bananas, ripe banana; fruit, food
barn: farm building, red barn; building, farm
basketball: basketball game, basketball player; ball, sport
beach: seaside, sandy beach, seashore; landscape, place by the sea
bee: honeybee, bumblebee; insect, animal
bell pepper: green pepper, sweet pepper; vegetable, food
bison: buffalo, american bison; mammal, animal, wild animal
boa constrictor: boa, snake; reptile, animal
brain coral: round coral; coral, sea animal
brown bear: grizzly bear, bear; mammal, animal, wild animal
bullet train: high-speed train, train; vehicle, railway
bullfrog: frog, green frog; amphibian, animal
camel: dromedary, arabian camel; mammal, animal
candy store: sweet shop, shop with candy; shop, building interior
convertible: open car, car without a roof; car, vehicle
coral reef: underwater reef; coral, landscape, place under water
dam: river dam, wall of a reservoir; structure, landscape
dragonfly: darning needle; insect, animal
elephant: african elephant, indian elephant; mammal, animal, wild animal
espresso: cup of coffee, coffee; drink, food
fire salamander: salamander, black and yellow salamander; amphibian, animal
fountain: water fountain; structure, place in a town
go-kart: kart, racing kart; small car, vehicle
golden retriever: retriever; dog, animal, pet
goldfish: orange fish; fish, animal
gondola: venetian boat, gondola in venice; boat, vehicle
goose: grey goose; bird, animal, water bird
grasshopper: locust; insect, animal
guinea pig: cavy; rodent, animal, pet
hog: pig, swine, boar; mammal, animal, farm animal
jellyfish: medusa; sea animal, animal
king penguin: penguin; bird, animal, water bird
koala: koala bear; mammal, animal, wild animal
ladybug: ladybird, ladybeetle; insect, animal
lifeboat: rescue boat; boat, vehicle
lighthouse: beacon, light tower; tower, building
lion: lioness, big cat; mammal, animal, wild animal
lobster: american lobster; crustacean, sea animal
monarch butterfly: monarch, orange butterfly; butterfly, insect, animal
mountain: alp, mountain peak, snowy mountain; landscape
moving van: moving truck, removal van; truck, vehicle
mushroom: toadstool, fungus; plant
obelisk: stone pillar; monument, structure
orange: orange fruit, citrus fruit; fruit, food
orangutan: orang-utan, ape; mammal, animal, wild animal
pizza: pizza pie, slice of pizza; dish, food
police van: police car, police wagon; car, vehicle
red panda: lesser panda; mammal, animal, wild animal
school bus: yellow bus; bus, vehicle
scorpion: scorpion with a sting; arachnid, animal
snail: garden snail, snail with a shell; animal, mollusk
sports car: fast car, racing car; car, vehicle
steel arch bridge: arch bridge, steel bridge; bridge, structure
suspension bridge: hanging bridge, cable bridge; bridge, structure
tabby cat: tabby, striped cat; cat, animal, pet
tarantula: spider, hairy spider; arachnid, animal
tractor: farm tractor; farm machine, vehicle
triumphal arch: monumental arch, stone arch; monument, structure
trolleybus: trolley bus, electric bus, tram; bus, vehicle
"""

_CALTECH101 = """
face: human face, person, portrait; people
leopard: spotted big cat, panther; mammal, animal, wild animal
motorbike: motorcycle; vehicle
accordion: squeezebox; musical instrument
airplane: plane, airliner, jet; aircraft, vehicle
anchor: ship's anchor; metal object
ant: small ant; insect, animal
barrel: wooden barrel, cask; container
bass: bass fish; fish, animal
beaver: castor; rodent, animal, wild animal
binocular: binoculars, field glasses; optical device
bonsai: bonsai tree, small tree in a pot; tree, plant
brain: human brain; organ
brontosaurus: long-necked dinosaur, sauropod; dinosaur, animal
buddha: statue of buddha; statue, figure
butterfly: colorful butterfly; insect, animal
camera: photo camera; optical device, electronic device
cannon: old cannon, artillery gun; weapon
car side: side of a car, car seen from the side; car, vehicle
ceiling fan: fan, fan on a ceiling; household object
cellphone: mobile phone, cell phone; phone, electronic device
chair: seat; furniture
chandelier: hanging lamp, candelabra; lamp, light
cougar body: cougar, puma, mountain lion; mammal, animal, wild animal
cougar face: face of a cougar, cougar, puma; mammal, animal, wild animal
crab: red crab; crustacean, sea animal
crayfish: crawfish, crawdad; crustacean, sea animal
crocodile: whole crocodile; reptile, animal, crocodilian
crocodile head: head of a crocodile, crocodile; reptile, animal, crocodilian
cup: mug, tea cup; container, household object
dalmatian: spotted dog, dalmatian dog; dog, animal, pet
dollar bill: banknote, money; paper object
dolphin: bottlenose dolphin; sea animal, animal
dragonfly: darning needle; insect, animal
electric guitar: guitar; musical instrument
elephant: african elephant, indian elephant; mammal, animal, wild animal
emu: large flightless bird; bird, animal
euphonium: tuba, baritone horn; brass instrument, musical instrument
ewer: jug, pitcher, vase; container
ferry: ferry boat, passenger ship; ship, vehicle
flamingo: pink bird; bird, animal, water bird
flamingo head: head of a flamingo, flamingo; bird, animal, water bird
garfield: orange cartoon cat; cartoon character
gerenuk: giraffe gazelle, antelope; mammal, animal, wild animal
gramophone: phonograph, old record player; old device
grand piano: piano; musical instrument
hawksbill: hawksbill turtle, sea turtle, turtle; reptile, sea animal
headphone: headphones, pair of headphones, headset; electronic device
hedgehog: porcupine; mammal, animal
helicopter: chopper; aircraft, vehicle
ibis: wading bird; bird, animal, water bird
inline skate: roller skate, rollerblade; shoe
joshua tree: desert tree, yucca; tree, plant
kangaroo: wallaby; mammal, animal, wild animal
ketch: sailboat, sailing boat, yacht; boat, ship, vehicle
lamp: table lamp, desk lamp; light, household object
laptop: laptop computer, notebook computer; computer, electronic device
llama: alpaca; mammal, animal, farm animal
lobster: american lobster; crustacean, sea animal
lotus: lotus flower; flower, plant
mandolin: lute; musical instrument
mayfly: flying mayfly; insect, animal
menorah: hanukkah candlestick, candlestick; household object, light
metronome: metronome for music; device
minaret: mosque tower, tower of a mosque; tower, building
nautilus: nautilus shell, spiral shell; shell, sea animal
octopus: squid; sea animal, animal
okapi: forest giraffe; mammal, animal, wild animal
pagoda: temple, chinese tower; tower, building
panda: giant panda, panda bear; mammal, animal, wild animal
pigeon: dove; bird, animal
pizza: pizza pie, slice of pizza; dish, food
platypus: duck-billed animal; mammal, animal
pyramid: egyptian pyramid; monument, building
revolver: pistol, handgun, gun; weapon
rhino: rhinoceros; mammal, animal, wild animal
rooster: cock, chicken; bird, animal, farm animal
saxophone: sax; brass instrument, musical instrument
schooner: tall ship, sailing ship; boat, ship, vehicle
scissors: pair of scissors; tool
scorpion: scorpion with a sting; arachnid, animal
sea horse: seahorse; fish, sea animal
snoopy: cartoon beagle; cartoon character
soccer ball: football; ball, sport
stapler: office stapler; office tool, tool
starfish: sea star; sea animal, animal
stegosaurus: dinosaur with plates; dinosaur, animal
stop sign: red traffic sign; sign
strawberry: red berry; fruit, food
sunflower: yellow flower; flower, plant
tick: blood-sucking tick; arachnid, animal
trilobite: trilobite fossil, fossil; extinct animal
umbrella: parasol; household object
watch: wristwatch; clock, small device
water lilly: water lily; flower, plant
wheelchair: chair with wheels; chair with wheels, vehicle
wild cat: wildcat, lynx; mammal, animal, wild animal
windsor chair: wooden chair, chair; furniture
wrench: spanner; tool
yin yang: yin and yang, black and white circle; symbol
"""

Words = dict[str, tuple[tuple[str, ...], tuple[str, ...]]]


def _read(table: str) -> Words:
    words = {}
    for line in table.strip().splitlines():
        name, _, rest = line.partition(": ")
        own, groups = (tuple(part.strip().split(", ")) for part in rest.split(";"))
        words[name] = own, groups
    return words


PHOTOS64, CALTECH101 = _read(_PHOTOS64), _read(_CALTECH101)
WORDS = PHOTOS64 | CALTECH101
"""Synonyms and super-classes of each class, in the order of the labels of the pre-training."""
