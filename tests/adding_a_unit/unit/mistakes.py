from collections import Counter

from lmcore.voting import most_common
from lmcourse.mistakes import mistake, variant


@mistake("voting.most_common", says="You gave the rarest word: look for the largest.")
def takes_the_rarest(words):
    if not words:
        raise ValueError("no words")
    return min(words, key=words.count)


@mistake("voting.most_common", says="Of equals, you gave the last one seen.")
def takes_the_last_of_equals(words):
    return most_common(list(reversed(words)))


@mistake("voting.most_common", says="You gave the first word and counted nothing.")
def takes_the_first(words):
    if not words:
        raise ValueError("no words")
    return words[0]


@variant("voting.most_common")
def counts_with_a_counter(words):
    if not words:
        raise ValueError("no words")
    return Counter(words).most_common(1)[0][0]
