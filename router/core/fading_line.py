"""A line fitted by least squares over samples that fade, robust against stalls."""

# Each new sample takes 2 % of the weight: about the last fifty count.
FADE = 0.98
# A sample further off the fit than this factor is taken as that far: a stall is not a speed.
OUTLIER_FACTOR = 4.0
# Samples before outliers are cut: the starting values may be off by any factor.
TRUSTED_SAMPLES = 8
# A fit needs arguments that differ: variance over squared mean.
SPREAD_MIN = 0.05


class FadingLine:
    """y = intercept + slope · x, both ≥ 0.

    Errors count relative to the sample and to the fit, halfway: what took longer than it had to
    says less than what was as fast as it can be.
    """

    __slots__ = ("intercept", "samples", "slope", "weight", "x", "xx", "xy", "y")

    def __init__(self, intercept: float, slope: float) -> None:
        self.intercept, self.slope = intercept, slope
        self.samples = 0
        self.weight = self.x = self.y = self.xx = self.xy = 0.0

    @property
    def mean_x(self) -> float:
        """Of the samples; there is one."""
        return self.x / self.weight

    @property
    def variance_x(self) -> float:
        mean_x = self.mean_x
        return max(0.0, self.xx / self.weight - mean_x * mean_x)

    def at(self, x: float) -> float:
        return self.intercept + self.slope * x

    def learn(self, x: float, y: float) -> float:
        """Take a sample, an outlier as one that is less far off; y > 0.

        Returns:
            The y that it was taken to have.
        """
        fit = self.at(x)
        if self.samples >= TRUSTED_SAMPLES and fit > 0.0:
            y = min(max(y, fit / OUTLIER_FACTOR), fit * OUTLIER_FACTOR)
        self.samples += 1
        weight = 1.0 / (y * max(fit, y / OUTLIER_FACTOR))
        self.weight = self.weight * FADE + weight
        self.x = self.x * FADE + weight * x
        self.y = self.y * FADE + weight * y
        self.xx = self.xx * FADE + weight * x * x
        self.xy = self.xy * FADE + weight * x * y
        self._fit()
        return y

    def _fit(self) -> None:
        mean_x, mean_y, variance = self.mean_x, self.y / self.weight, self.variance_x
        if variance > SPREAD_MIN * mean_x * mean_x:
            slope = (self.xy / self.weight - mean_x * mean_y) / variance
            if slope > 0.0:
                intercept = mean_y - slope * mean_x
                if intercept >= 0.0:
                    self.slope, self.intercept = slope, intercept
                elif self.xx > 0.0:  # best line through the origin
                    self.slope, self.intercept = self.xy / self.xx, 0.0
                return
        # Nothing told apart by x: keep the line's shape, move it to the mean.
        fit = self.at(mean_x)
        if fit > 0.0:
            self.slope *= mean_y / fit
            self.intercept *= mean_y / fit
        else:
            self.intercept = mean_y
