"""The words of the lab's world: restaurants, what can be said about them, and what has nothing to do with them.

Strengths: an adjective is *weak* (1) or *strong* (2), with the sign of its sentiment. The grammar turns strength and
degree words into the value of a claim, an integer from -4 (worst) to 4 (best).
"""

ASPECTS = ("food", "service", "price", "room", "wait")

# Names of places, one word each.
PLACES = (
    "Luigi's",
    "Rosa's",
    "Marta's",
    "Omar's",
    "Nina's",
    "Pedro's",
    "Anna's",
    "Chen's",
    "Bluebird",
    "Saffron",
    "Tamarind",
    "Lanterna",
    "Moonlight",
    "Harbour",
    "Juniper",
    "Marigold",
    "Peppercorn",
    "Sunrise",
    "Riverside",
    "Cinnamon",
    "Clover",
    "Orchard",
    "Driftwood",
    "Magnolia",
    "Ginger",
    "Nutmeg",
    "Starling",
    "Copper",
    "Amber",
    "Willow",
    "Thistle",
    "Poppy",
    "Compass",
    "Beacon",
    "Terrace",
    "Meadow",
    "Paprika",
    "Sorrel",
    "Firefly",
    "Fennel",
)

# Cuisine -> its dishes: (singular ones, plural ones). No dish belongs to two cuisines.
CUISINES = {
    "noodle bar": (("broth", "ramen"), ("noodles", "dumplings")),
    "pizza place": (("pizza", "calzone"), ("olives", "garlic sticks")),
    "burger joint": (("burger", "milkshake"), ("fries", "onion rings")),
    "sushi bar": (("sushi", "tuna"), ("rice rolls", "prawns")),
    "steak house": (("steak", "gravy"), ("ribs", "potatoes")),
    "bakery": (("bread", "cake"), ("croissants", "pies")),
    "taco stand": (("salsa", "guacamole"), ("tacos", "burritos")),
    "curry house": (("curry", "naan"), ("lentils", "samosas")),
    "fish shop": (("cod", "chowder"), ("oysters", "mussels")),
    "coffee shop": (("coffee", "espresso"), ("muffins", "sandwiches")),
}

# Who or what a claim is about, by aspect: (singular noun phrases, plural noun phrases). Dishes join "food".
SUBJECTS = {
    "food": (("the food", "my meal"), ("the side dishes",)),
    "service": (("the service", "the staff", "our waiter", "the waitress"), ("the waiters", "the people there")),
    "price": (("the bill", "the price"), ("the prices",)),
    "room": (("the room", "the music", "the dining hall"), ("the tables", "the chairs")),
    "wait": (("the wait", "the queue"), ("the waiting times",)),
}

# Adjectives by aspect and strength; those of "any" go with every aspect.
ADJECTIVES = {
    "any": {1: ("good", "nice"), 2: ("great", "wonderful"), -1: ("poor", "disappointing"), -2: ("terrible", "awful")},
    "food": {
        1: ("tasty", "fresh", "juicy"),
        2: ("delicious", "superb"),
        -1: ("bland", "cold", "greasy", "soggy"),
        -2: ("disgusting", "inedible"),
    },
    "service": {
        1: ("friendly", "polite", "helpful"),
        2: ("charming", "outstanding"),
        -1: ("slow", "careless", "moody"),
        -2: ("rude", "hostile"),
    },
    "price": {
        1: ("fair", "reasonable", "modest"),
        2: ("unbeatable", "fantastic"),
        -1: ("high", "steep"),
        -2: ("outrageous", "shocking"),
    },
    "room": {
        1: ("clean", "cosy", "pleasant"),
        2: ("beautiful", "gorgeous"),
        -1: ("noisy", "shabby", "uncomfortable"),
        -2: ("filthy", "dreadful"),
    },
    "wait": {
        1: ("short", "bearable"),
        2: ("painless", "minimal"),
        -1: ("long", "tiring"),
        -2: ("endless", "maddening"),
    },
}

# Degree words.
STRENGTHEN_WEAK = ("very", "really", "so")
STRENGTHEN_STRONG = ("absolutely", "simply", "truly")
SOFTEN_GOOD = ("fairly", "quite")
SOFTEN_BAD = ("a bit", "somewhat")

# Whole predicates with their claim value; the subject is written before them or in them.
# "{dish}" is a dish or the food, "{diner}" is I or we.
EATER_PHRASES = {
    4: ("could eat {dish} every day",),
    3: ("loved {dish}",),
    2: ("enjoyed {dish}", "liked {dish}"),
    -2: ("did not like {dish}",),
    -3: ("hated {dish}", "could not finish {dish}"),
    -4: ("felt sick after {dish}",),
}
DINER_PHRASES = {
    "price": {
        4: ("paid next to nothing",),
        3: ("got great value for the money",),
        2: ("paid a fair price",),
        -2: ("expected a smaller bill",),
        -3: ("paid far too much",),
        -4: ("felt robbed",),
    },
    "room": {
        4: ("never wanted to leave our table",),
        3: ("had a lovely table by the window",),
        2: ("found a quiet corner",),
        -2: ("sat next to the toilets",),
        -3: ("could not hear a word",),
        -4: ("saw a rat under the table",),
    },
    "wait": {
        4: ("got our order within minutes",),
        3: ("found a table at once",),
        2: ("did not wait long",),
        -2: ("waited for half an hour",),
        -3: ("waited for over an hour",),
        -4: ("left before our order came",),
    },
}
STAFF_PHRASES = {
    4: ("made us feel at home", "went out of their way for us"),
    3: ("knew every dish by heart",),
    2: ("smiled at us", "remembered our names"),
    -2: ("forgot our drinks",),
    -3: ("ignored us", "mixed up our order"),
    -4: ("shouted at us",),
}
STAFF = ("the staff", "our waiter", "the waitress", "the waiters", "the people there")

ADVERBS = {1: ("luckily", "happily", "to my delight"), 0: ("honestly", "this time"), -1: ("sadly", "to my regret")}

# Openers and verdicts. "{place}" is the place by name or kind, "{time}" a time, "{meal}" a meal.
OPENERS = (
    "I went to {place} {time}",
    "we tried {place} {time}",
    "we had {meal} at {place} {time}",
    "my friends took me to {place} {time}",
)
TIMES = ("last night", "on Friday", "on Sunday", "yesterday", "last week", "for the first time")
MEALS = ("lunch", "dinner")
VERDICTS = {
    4: ("five stars from me", "{place} is a real gem", "this was my best {meal} in years"),
    3: ("I will come back soon", "I can warmly recommend {place}"),
    2: ("{place} is worth a visit", "four stars from me"),
    1: ("I might come back",),
    -1: ("I am not sure about a second visit",),
    -2: ("two stars from me", "there are better places in town"),
    -3: ("I will not come back", "I cannot recommend {place}"),
    -4: ("one star from me", "stay away from {place}", "this was my worst {meal} in years"),
}

# Off topic: grammatical English that no reader of a review asked for.
PEOPLE = ("my cousin", "my brother", "our neighbour", "my boss", "my aunt", "our teacher")
DEEDS = ("bought", "sold", "lost", "found", "painted")
THINGS = ("a bicycle", "an old car", "a piano", "a red hat", "a small boat", "a garden fence", "a grey cat")
WEATHER = ("it rained all day", "it was windy in the hills", "it snowed", "the sun came out late")
TRAFFIC = ("the train was late again", "the bus was full", "the road to the airport was closed", "my phone was broken")

# Words that carry no content of their own: two sentences that share only these do not repeat each other.
FUNCTION_WORDS = frozenset(
    {
        "a",
        "an",
        "the",
        "I",
        "we",
        "my",
        "our",
        "this",
        "that",
        "it",
        "was",
        "were",
        "is",
        "are",
        "am",
        "be",
        "and",
        "but",
        "so",
        ",",
        ".",
        "!",
        "of",
        "to",
        "at",
        "in",
        "on",
        "for",
        "from",
        "by",
        "with",
        "not",
        "very",
        "really",
        "absolutely",
        "simply",
        "truly",
        "fairly",
        "quite",
        "bit",
        "somewhat",
        "after",
        "before",
        "us",
        "me",
        "their",
        "do",
        "did",
        "there",
        "would",
        "will",
        "could",
        "can",
        "cannot",
        "had",
    }
)
