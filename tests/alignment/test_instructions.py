"""Every check of the battery passes an answer that a person would call right, and fails one that a person would not."""

import pytest

from modernllm.alignment import answer_checks as has
from modernllm.alignment.instructions import INSTRUCTIONS, check_instructions
from modernllm.core.config import InputError

LONG = "The dog ran through the town and looked for its home. " * 9
ANSWERS = {  # kind: (followed, not followed) in the order of the battery
    "count": [
        ("The sea is wide. It is also deep!", "The sea is wide, deep and blue."),
        ("People sleep because the brain needs rest", "They are tired. They need rest."),
        ("I walked. I saw a fox. It ran off. Then it rained.", "I walked. I saw a fox."),
        ("Paris.", "It is Paris."),
        ("Good morning, friend!", "Hello!"),
        ("A cat is small, quick and quiet.", "A cat is a small animal with soft fur that likes to sleep in the sun."),
        ("Rain falls\non walls\nand halls\nand calls", "Rain falls\non walls"),
        ("Tea is a drink.\n\nIt is made of leaves.", "Tea is a drink.\nIt is made of leaves."),
        ("Red\nGreen\nBlue", "Here are three colours:\nRed\nGreen\nBlue"),
        ("cat, dog, cow, pig", "cat, dog, cow"),
    ],
    "length": [
        ("A vehicle with two wheels and pedals.", LONG),
        (LONG, "The dog ran home."),
        ("My favourite season is autumn, because the leaves are red and gold, the air is clear, and the evenings are long and "
         "quiet at home.", "I like autumn."),
        ("Happy birthday, dear Ann!", "Happy birthday, dear Ann! May the year bring you all that you have been hoping for."),
        ("ChocoJoy", "The Incredible Chocolate Bar of Joy"),
        (LONG, "Exercise is healthy."),
    ],
    "case": [
        ("THE MOON IS 384,000 KM AWAY.", "THE MOON IS far AWAY."),
        ("bread is baked from flour.", "Bread is baked from flour."),
        ("The Sea Of Sand", "The sea of sand"),
        ("ELEPHANT", "Elephant"),
        ("WARNING: the road is icy.", "Warning: the road is icy."),
        ("cows drink water.", "Cows drink water."),
    ],
    "format": [
        ("Here are three:\n- apple\n- pear\n- plum", "apple, pear and plum"),
        ("- Peru\n- Chile\n- Japan\n- Kenya\n- Italy", "- Peru\n- Chile"),
        ("1. They teach.\n2. They calm.\n3. They please.", "- They teach.\n- They calm.\n- They please."),
        ("1) Boil water.\n2) Warm the pot.\n3) Add tea.\n4) Wait.", "1. Boil water.\n2. Add tea."),
        ('```json\n{"name": "Ann", "age": 7}\n```', "name: Ann, age: 7"),
        ('{"city": "Rome", "country": "Italy", "population": 2800000}', '{"city": "Rome"}'),
        ("[1, 2, 3]", "[1, 2]"),
        ("| animal | sound |\n|---|---|\n| cow | moo |\n| cat | miaow |\n| dog | woof |", "cow: moo\ncat: miaow"),
        ("2020-01-01", "1 January 2020"),
        ("15:15", "3:15 pm"),
        ('"Know thyself."', "Know thyself."),
        ("ann.lee@example.org", "My address is ann.lee@example.org"),
    ],
    "words wanted": [
        ("I have an egg and toast.", "I have eggplant and toast."),
        ("Snow falls. I wear a coat by the fire.", "Snow falls on my coat by the fire."),
        ("Go to a mountain village.", "Go to the sea."),
        ("Put paper, glass and metal in their bins.", "Put everything in its bin."),
        ("It is very, very good.", "It is very good."),
        ("In my opinion, music heals.", "I think music heals."),
        ("The answer is 42.", "The answer is forty-two."),
        ("The bridge crosses the river.", "The bridge by the old bridge crosses the river."),
    ],
    "words unwanted": [
        ("The sun is a bright star.", "The sun is hot and bright."),
        ("A loyal animal that barks.", "Dogs are loyal animals that bark."),
        ("A place where children learn.", "A place where students learn."),
        ("Bread is good for you.", "Pizza is good for you."),
        ("The sky is blue today.", "The sky is blue, clear and wide."),
        ("Birds sing in spring.", "Birds quarrel in spring."),
        ("They are usually six years old.", "They are usually 6 years old."),
        ("A dark season with frost.", "A cold season with frost."),
    ],
    "beginning and end": [
        ("First, learn ten words a day.", "Learn ten words a day first."),
        ("Rain is water that falls from clouds.", "Water that falls from clouds is rain."),
        ("Dear friend,\nhow are you?", "Hello friend, how are you?"),
        ("Thank you for your help.\nBest wishes", "Thank you for your help."),
        ("Success comes to those who try!", "Success comes to those who try."),
        ("What do you like to do on Sundays?", "I like to read."),
        ("Once upon a time a frog sang. The end.", "A frog sang. The end."),
        ("Yes.", "Yes, ice is colder than steam."),
    ],
    "language": [
        ("Le soleil est une étoile au centre de notre système.", "The sun is a star in the middle of our system."),
        ("Por la mañana me levanto y bebo un café con leche.", "In the morning I get up and drink a coffee."),
        ("Die Menschen wollen sich erholen und etwas Neues sehen.", "People want to rest and to see something new."),
        ("Una buona colazione è il pane con il burro e un caffè.", "A good breakfast is bread with butter and a coffee."),
        ("Ein Wald ist ein Ort, an dem viele Bäume stehen.", "A forest is a place with many trees in it."),
        ("La mer est bleue parce que le ciel se reflète dans l'eau.", "The sea is blue because it reflects the sky."),
        ("A mountain is a high place that rises above the land.", "Una montaña es un lugar muy alto de la tierra."),
        ("Наш дом стоит у реки.", "Our house stands by the river."),
    ],
}
PAIRS = {one.name: pair for kind, pairs in ANSWERS.items()
         for one, pair in zip([one for one in INSTRUCTIONS if one.kind == kind], pairs, strict=True)}


@pytest.mark.parametrize("one", INSTRUCTIONS, ids=lambda one: one.name)
def test_a_followed_and_a_not_followed_answer(one):
    followed, not_followed = PAIRS[one.name]
    assert one.followed(followed) and one.followed(f"\n {followed} \n") and not one.followed(not_followed)
    assert not one.followed("") and not one.followed(" \n")


def test_the_table_counts_by_kind():
    table = check_instructions({name: pair[i % 2] for i, (name, pair) in enumerate(PAIRS.items())}).set_index("kind")
    assert len(INSTRUCTIONS) >= 60 and table.loc["all", "n"] == len(INSTRUCTIONS) == table["n"].iloc[:-1].sum()
    assert (table["share"] == 0.5).all() and (table["low"] < 0.5).all() and (table["high"] > 0.5).all()


def test_a_missing_answer_is_refused():
    with pytest.raises(InputError, match="66 of 66 are missing, such as count_1") as caught:
        check_instructions({})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("check", "answer", "right"), [
    (has.sentences(1), "It costs 3.50 euros, e.g. here.", True), (has.sentences(2), 'He said "no." She left.', True),
    (has.words(3, 3), "It's well-known here", True), (has.bullets(2), "* a\n* b", True), (has.bullets(2), "a - b\nc - d", False),
    (has.json_object("a"), '{"a": 1', False), (has.json_object("a"), "[1]", False), (has.title, "3 Blind Mice", True),
    (has.title, "", False), (has.contains("egg"), "EGG!", True), (has.avoids("dog"), "no", False),
    (has.table(2, 1), "a | b\n--- | ---\n1 | 2", True), (has.language("en"), "", False),
    (has.script("а-яё"), "123", False), (has.separated(3), "a, b,", False), (has.numbered(2), "1. a\n2. b\n3. c", False),
])
def test_checks_at_their_edges(check, answer, right):
    assert check(answer) is right
