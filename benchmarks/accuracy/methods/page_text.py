"""The words of docs/results.md; a name in angle brackets stands for a table or a number."""

TEXT = """# The methods against each other

Everything here is measured on the bundled models and data, by

```bash
python -m benchmarks.accuracy methods measure && python -m benchmarks.accuracy methods collect
python -m benchmarks.accuracy methods table
```

(hours on two CPU cores; it goes on where it was stopped), from
[methods.json](../benchmarks/results/cpu-2-cores/methods.json). What the small CLIP shows need not
hold for a large one: read it as a check of the methods' code and of the direction of their effects.

- `shapes`, <shots> shots of 80 classes. The presets were chosen on training and validation images;
  the search is recorded in
  [method_sweep.json](../benchmarks/results/cpu-2-cores/method_sweep.json). Test images played no
  part in it.
- The radius of the tuning is a setting of the preset (`tuned at`), and one tuned run is judged at
  all three radii. Tuning ran in bfloat16 on one thread, the judge in float32.
- Robust accuracy is that under an adaptive PGD-100 (white-box through prompts, router and refiners;
  steps of eps/4, one random start) on <images> test images, the same for all. Judged: <counts>;
  an image that is fooled is left alone. Clean accuracy is that on all test images.
- Mean and range over three seeds, of the shots and of the tuning.

<missing>
What to read from it:

- NAP wins most, clean and attacked, and its token refiners are why: without them it stands near
  the others. They are also most of what it trains, and they know the classes that they were tuned
  on: on new ones NAP loses more than half of the zero-shot classifier's clean accuracy, where the
  others keep nearly all of it.
- On the robust model APT, AMPT, CAPT and NAP win more than their seeds' spread at 1/255 and
  2/255, and lose nothing clean; at 4/255 none wins. On the plain model APT and CAPT pay in clean
  accuracy.
- AdvPT, tuned on a bank that saw no prompts, wins clean accuracy and little against this attack.
- AutoAttack (below) leaves less than PGD-100 of all of them on the robust model, and takes most
  from NAP, whose lead among the methods is gone there: at 2/255 all stand a little above the
  zero-shot classifier, and their intervals overlap. On the plain model NAP alone keeps a part
  (8 %). PGD alone would have said otherwise.
- Not seen here: that more prompts beat a longer one (AMPT), that a consistency term helps (CAPT,
  and NAP's cosine), or that its balance matters. The differences are those of the seeds.
- Prompts in all four layers win clean accuracy over those in the first; in two they did worse
  than in either.

## tiny-shapes

<main:tiny-shapes>

## tiny-shapes-robust

<main:tiny-shapes-robust>

## AutoAttack

The first seeds at 2/255 on <strong images> test images, from
[methods_autoattack.json](../benchmarks/results/cpu-2-cores/methods_autoattack.json)
(`python -m benchmarks.accuracy methods autoattack`). PGD-100 on the same images, any iterate
judged; then what each attack of AutoAttack's standard version leaves of what the one before it
left, the last with its 95 % interval (Wilson); then the checks of `fastprompt.evaluate`.

<strong>

## Shifted images

The prompts of the first seed on images that are further away.

tiny-shapes:

<shift:tiny-shapes>

tiny-shapes-robust:

<shift:tiny-shapes-robust>

## Base to new

tiny-shapes-robust, tuned on the first half of the classes (first seed), judged on both halves among
themselves; `mean` is the harmonic mean.

<new>

## The papers' claims

On tiny-shapes-robust, one setting changed at a time. One seed, <images> attacked images: a
difference below the ranges of the main table says nothing.

### More prompts beat a longer one (AMPT)

16 context tokens in all.

<mixture>

### Refiners purify (NAP)

<refiners>

### What holds the layers together (NAP)

The published loss moves from clean to adversarial images (`linear`) and holds the layers together
by their cosine; the preset takes fixed shares and no such term.

<layers>

### The consistency and its balance (CAPT)

`lam=0.0` is plain adversarial tuning of the same prompts.

<balance>

### Text alone or both towers, shallow or deep

APT is a text context alone; CAPT at `lam=0.0` has prompts in the first `depth` layers of both
towers.

<depth>
"""
