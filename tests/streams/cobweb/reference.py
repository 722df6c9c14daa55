"""Cobweb/4V once more, in plain words: a node is the list of its images, nothing is updated.

Scores are KL(child || parent), as in the public code, of statistics that are computed anew from the
images each time; every operation is carried out on the partition and scored.
"""

import numpy as np

V0 = 1 / (2 * np.pi * np.e)


class Node:
    def __init__(self, members, kids=()):
        self.members, self.kids = list(members), list(kids)

    def shape(self):
        """Sizes of all nodes as nested tuples: equal trees have equal shapes."""
        return (len(self.members), *(kid.shape() for kid in self.kids))


def statistics(members, num_classes):
    images = np.array([image for image, _ in members])
    shares = np.bincount([label for _, label in members], minlength=num_classes) / len(members)
    return images.mean(0), images.var(0) + V0, shares


def score(child, parent, num_classes, sign):
    (m1, v1, p1), (m2, v2, p2) = statistics(child, num_classes), statistics(parent, num_classes)
    seen = p1 > 0
    labels = (p1[seen] * np.log(p1[seen] / p2[seen])).sum()
    return 0.5 * (np.log(v2 / v1) + (v1 + (m1 - m2) ** 2) / v2 - 1).sum() + sign * labels


def utility(parts, parent, num_classes, sign):
    terms = [len(c) / len(parent) * score(c, parent, num_classes, sign) for c in parts]
    return sum(terms) / len(parts)


def partitions(node, item, num_classes, sign):
    """The two children that gain most, and the utility of each operation."""
    after = [*node.members, item]

    def gain(kid):
        new = (len(kid.members) + 1) * score([*kid.members, item], after, num_classes, sign)
        return new - len(kid.members) * score(kid.members, after, num_classes, sign)

    ranked = sorted(node.kids, key=lambda kid: (-round(gain(kid), 9), -len(kid.members)))
    first, second = ranked[:2]
    parts = [kid.members for kid in node.kids]
    rest = [kid.members for kid in node.kids if kid is not first]
    scores = {"best": utility([*rest, [*first.members, item]], after, num_classes, sign)}
    scores["new"] = utility([*parts, [item]], after, num_classes, sign)
    if len(node.kids) > 2:
        others = [kid.members for kid in node.kids if kid not in (first, second)]
        both = [*first.members, *second.members, item]
        scores["merge"] = utility([*others, both], after, num_classes, sign)
    if first.kids:
        below = [kid.members for kid in first.kids]
        scores["split"] = utility([*rest, *below], node.members, num_classes, sign)
    return first, second, scores


def insert(root, item, num_classes, sign):
    """The root after one more item, and the operations on its way."""
    done = []
    if root is None:
        return Node([item]), done
    above, here = None, root
    while here.kids:
        first, second, scores = partitions(here, item, num_classes, sign)
        done.append(max(scores, key=scores.get))
        if done[-1] == "split":
            here.kids = [kid for kid in here.kids if kid is not first] + first.kids
            continue
        here.members.append(item)
        if done[-1] == "new":
            here.kids.append(Node([item]))
            return root, done
        if done[-1] == "merge":
            group = Node(first.members + second.members, [first, second])
            here.kids = [kid for kid in here.kids if kid not in (first, second)] + [group]
            first = group
        above, here = here, first
    if all((image == item[0]).all() and label == item[1] for image, label in here.members):
        here.members.append(item)
        return root, done
    pair = Node([*here.members, item], [here, Node([item])])
    if above is None:
        return pair, done
    above.kids = [kid for kid in above.kids if kid is not here] + [pair]
    return root, done
