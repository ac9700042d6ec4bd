"""Text of docs/results.md; names in angle brackets are replaced by tables or numbers."""

TEXT = """# Comparison of the methods

All results on this page are measured on the bundled models and data with

```bash
python -m benchmarks.accuracy methods measure && python -m benchmarks.accuracy methods collect
python -m benchmarks.accuracy methods table
```

The measurement takes hours on two CPU cores and resumes after an interruption. The raw results are
in [methods.json](../benchmarks/results/cpu-2-cores/methods.json). Results on these small CLIP
models need not hold for large ones; they check the methods' code and the direction of each effect.

- Data: `shapes`, <shots> images for each of 80 classes. The presets were chosen by hand after 38
  recorded runs on training and validation images (28 of NAP, none of AdvPT):
  [method_sweep.json](../benchmarks/results/cpu-2-cores/method_sweep.json).
- NAP was measured with refiners before five blocks, except under *Precision of the tuning*; today's
  code has three, before the blocks with deep prompts, as in the authors' code. AdvPT was measured
  before a [correction of its learning rate](../CHANGELOG.md).
- Radius: the tuning radius is a setting of the preset (`tuned at`), and each tuned run is
  evaluated at all three radii. Tuning runs in bfloat16 on one thread, the evaluation in float32.
- Robust accuracy is the accuracy under an adaptive PGD-100 attack (white-box through prompts,
  router and refiners; step size eps/4, one random start) on <images> test images, the same for all
  methods. Evaluated: <counts>; a misclassified image is not attacked further. Clean
  accuracy is measured on all test images.
- Each value is the mean over three seeds of the few-shot sample and the tuning; the range is in
  parentheses.

<missing>
Findings:

- Under PGD-100, NAP improves most over the zero-shot classifier at 1/255 and 2/255 on both models,
  and on the robust model also in clean accuracy. There, NAP without token refiners is close to the
  other methods (one seed). The refiners contain most of its trainable parameters. On new classes
  NAP loses more than half of the zero-shot classifier's clean accuracy, while the other methods
  keep nearly all of it.
- On the robust model, the gains of APT, AMPT, CAPT and NAP at 1/255 and 2/255 exceed the range
  over the seeds, and their clean accuracy does not decrease; at 4/255 no method improves. On the
  plain model, CAPT loses clean accuracy, and APT too, most of it at one of three seeds.
- AdvPT, which is tuned on adversarial embeddings computed without the prompts, improves clean
  accuracy. Robust accuracy changes less: by +3.4 points on the robust model at 1/255, by -1.5 there
  at 4/255, and by at most 1.2 otherwise.
- AutoAttack (below) lowers the accuracy of every method on the robust model further than PGD-100.
  NAP loses most and no longer leads there: at 2/255 all methods are slightly above the zero-shot
  classifier, with overlapping confidence intervals. On the plain model only NAP keeps more than
  1 % (8 %). PGD alone would have led to a different conclusion.
- Not observed: a benefit of several prompts over one longer prompt (AMPT), of a consistency term
  (CAPT, and NAP's cosine), or of its balance. The differences are comparable to those between
  seeds.
- Prompts in all four layers give higher clean accuracy than prompts in the first layer; prompts in
  two layers give lower accuracy than either.

## tiny-shapes

<main:tiny-shapes>

## tiny-shapes-robust

<main:tiny-shapes-robust>

## AutoAttack

The first seed of each method at 2/255 on <strong images> test images, from
[methods_autoattack.json](../benchmarks/results/cpu-2-cores/methods_autoattack.json)
(`python -m benchmarks.accuracy methods autoattack`). The columns are: the accuracy under PGD-100
on the same images, with every iterate evaluated; the accuracy after each attack of AutoAttack's
standard version, each of which attacks the images that survived the one before, with the 95 %
Wilson interval for the last; and the result of the checks of `fastprompt.evaluate`.

<strong>

## Shifted images

The prompts of the first seed, evaluated on images from shifted distributions.

tiny-shapes:

<shift:tiny-shapes>

tiny-shapes-robust:

<shift:tiny-shapes-robust>

## Base to new

tiny-shapes-robust, tuned on the first half of the classes (first seed) and evaluated on each half,
with the class names of that half only; `mean` is the harmonic mean.

<new>

## Precision of the tuning

The same runs tuned in float32 and with `precision="auto"`, which is bfloat16 on this processor; all
evaluated in float32, clean on all test images and under PGD-100 on <images>, with one value for
each of three seeds. NAP runs for half of its epochs here. No mean difference is above 1 point;
NAP's robust accuracy on tiny-shapes is lower at each seed.

<precision>

## The papers' claims

On tiny-shapes-robust, with one setting changed at a time. One seed, <images> attacked images:
differences smaller than the ranges of the main table are not meaningful.

### Several prompts instead of a longer one (AMPT)

16 context tokens in total.

<mixture>

### Token refiners (NAP)

<refiners>

### Consistency of the layers (NAP)

The published loss shifts its weight from clean to adversarial images (`linear`) and adds the
cosine consistency of the layers; the preset has fixed weights and no consistency term.

<layers>

### The consistency term and its balance (CAPT)

The preset has the cross-entropy of the adversarial images (`ce="adv"`). `lam=0.0` is adversarial
tuning of the same prompts without the consistency term.

<balance>

### Text prompts alone or prompts in both encoders, shallow or deep

APT has a text context alone; CAPT at `lam=0.0` has prompts in the first `depth` layers of both
encoders.

<depth>
"""
