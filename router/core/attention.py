"""How much a prompt's context weighs in its prefill: attention, counted in pairs, and its weight.

A token to compute looks at each token before it. So `tokens` new ones after a context cost

    tokens + weight · pairs    in units of one token's arithmetic,

             |<- context ->|<- tokens ->|
    pairs     .............#
              .............##
              .............###           =  tokens · (context + tokens / 2)
              .............####

The weight is the model's and its hardware's: 4e-5 for a model of 8B on an H100, where a token after
25,000 others takes twice as long as the first. It is learned from the whole fleet, from first
tokens that had not to wait: the ratio of two slopes by least squares of relative errors, since what
else delays a first token makes it late, never early. A ratio that is not known well counts less.
"""

from dataclasses import dataclass

# Each new sample takes 0.2 % of the weight: it is a constant, about the last five hundred count.
FADE = 0.998
# So many samples, at least, before anything is said.
SAMPLES_MIN = 8.0
# Where tokens and pairs of the samples tell the same, nothing is learned: 1 - correlation².
TOLD_APART_MIN = 0.005


def attention_pairs(context: int, tokens: int) -> int:
    """How many tokens before them `tokens` new ones look at, together."""
    return tokens * (context + tokens // 2)


@dataclass(slots=True)
class ContextWeight:
    """What a pair costs, in tokens; 0 until samples tell.

    Sums are of products of t (tokens), p (pairs) and y (seconds they took), over y².
    """

    weight: float = 0.0
    _samples: float = 0.0
    _one: float = 0.0
    _t: float = 0.0
    _p: float = 0.0
    _y: float = 0.0
    _tt: float = 0.0
    _tp: float = 0.0
    _pp: float = 0.0
    _ty: float = 0.0
    _py: float = 0.0

    def learn(self, tokens: float, pairs: float, seconds: float) -> None:
        """So much was computed in so many seconds, by a replica with nothing else to prefill."""
        over = 1.0 / seconds
        t, p = tokens * over, pairs * over
        self._samples = self._samples * FADE + 1.0
        self._one = self._one * FADE + over * over
        self._t = self._t * FADE + t * over
        self._p = self._p * FADE + p * over
        self._y = self._y * FADE + over
        self._tt = self._tt * FADE + t * t
        self._tp = self._tp * FADE + t * p
        self._pp = self._pp * FADE + p * p
        self._ty = self._ty * FADE + t
        self._py = self._py * FADE + p
        if self._samples >= SAMPLES_MIN:
            self._solve()

    def _solve(self) -> None:
        """y = overhead + per_token · t + per_pair · p, and how well the ratio is known."""
        one = self._one
        tt = self._tt - self._t * self._t / one
        tp = self._tp - self._t * self._p / one
        pp = self._pp - self._p * self._p / one
        ty = self._ty - self._t * self._y / one
        py = self._py - self._p * self._y / one
        determinant = tt * pp - tp * tp
        if determinant <= TOLD_APART_MIN * tt * pp:
            return
        per_token = (ty * pp - py * tp) / determinant
        per_pair = (py * tt - ty * tp) / determinant
        if per_token <= 0.0 or per_pair <= 0.0:
            self.weight = 0.0
            return
        ratio = per_pair / per_token
        left = self._samples - self._y * self._y / one - per_token * ty - per_pair * py
        # Of the ratio, by its derivatives to both slopes.
        spread = pp * ratio * ratio + 2.0 * tp * ratio + tt
        variance = max(0.0, left) / self._samples * spread / (determinant * per_token * per_token)
        self.weight = ratio * ratio * ratio / (ratio * ratio + variance)
