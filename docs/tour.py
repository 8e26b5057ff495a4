# %% [markdown]
# # A BERT and its student, cell by cell
#
# A BERT is a network that reads text in both directions. It is trained by masked language modelling (MLM):
# some words are hidden, and it must predict them. Distillation trains a small model, the student, to imitate
# a large model, the teacher.
#
# This tour builds a batch, looks inside a BERT, and makes a smaller BERT from it. It takes half a minute on
# two free CPU cores. It uses the small teacher in `weights/teacher` and downloads nothing. An `assert` checks
# each important number. You can change a cell and run it again.
#
# The letters are those of the whole project: S sequences, N tokens of the batch, T tokens of one sequence, D
# the width of hidden states, H heads, E = D / H the size of a head, V the size of the vocabulary, L layers.

# %%
import itertools
import math
import sys
from pathlib import Path

ROOT = next(folder for folder in (Path.cwd(), Path.cwd().parent) if (folder / "weights" / "teacher").is_dir())
sys.path.insert(0, str(ROOT))  # finds minibert even if it is not installed

import matplotlib.pyplot as plt
import numpy as np
import torch
import torch.nn.functional as F

import minibert

torch.manual_seed(0)
plt.rcParams.update({"figure.dpi": 80, "axes.spines.top": False, "axes.spines.right": False, "font.size": 9})

teacher = minibert.load(ROOT / "weights" / "teacher").requires_grad_(False)
tokenizer = minibert.load_tokenizer(ROOT / "weights" / "teacher")
c = teacher.config
print(f"L = {c.layers}, D = {c.hidden_size}, H = {c.heads}, E = {c.head_size}, V = {c.vocab_size}")
print(f"{sum(p.numel() for p in teacher.parameters()):,} parameters")

# %% [markdown]
# ## 1. From text to a packed batch
#
# A tokenizer divides text into pieces of a fixed vocabulary. A piece that continues a word starts with `##`.
# The tokenizer puts `[CLS]` before each text and `[SEP]` after it. This model makes no difference between
# upper and lower case, so all text becomes lower case.

# %%
texts = ["The function returns a list of strings.",
         "Raises an exception.",
         "If the file does not exist, an error is raised and nothing is written."]
ids, segments = tokenizer.encode(texts)
for sequence in ids:
    print(len(sequence), "tokens:", " ".join(tokenizer.id_to_piece(i) for i in sequence))
assert [tokenizer.decode(sequence) for sequence in ids] == [text.lower() for text in texts]

# %% [markdown]
# Most implementations put the sequences into a table of S rows. The table is as wide as the longest sequence.
# The empty cells are padding: their results are computed but not used. In this project the sequences follow
# each other in one list of N tokens. `offsets` says where each sequence begins.

# %%
batch = minibert.pack(ids, segments)
print("lengths", batch.lengths.tolist(), "  offsets", batch.offsets.tolist(), "  N =", len(batch.ids))

S, T, N = len(ids), int(batch.lengths.max()), len(batch.ids)
figure, (padded, packed) = plt.subplots(2, figsize=(11, 4.2), height_ratios=[3, 1])
colours = ["tab:blue", "tab:orange", "tab:green"]


def draw(axis, row, column, colour, piece=""):
    axis.add_patch(plt.Rectangle((column, -row), 1, 1, facecolor=colour, edgecolor="w", linewidth=1.5))
    axis.text(column + 0.5, 0.5 - row, piece, rotation=90, size=7, color="w", ha="center", va="center")


for s, sequence in enumerate(ids):
    for t in range(T):
        real = t < len(sequence)
        draw(padded, s, t, colours[s] if real else "0.85", tokenizer.id_to_piece(sequence[t]) if real else "")
    for t, i in enumerate(sequence):
        draw(packed, 0, int(batch.offsets[s]) + t, colours[s], tokenizer.id_to_piece(i))
titles = f"padded: {S} rows of {T} = {S * T} cells", f"packed: {N} cells"
for axis, rows, title in zip((padded, packed), (S, 1), titles):
    axis.set(xlim=(0, N), ylim=(1 - rows, 1))
    axis.set_title(title, loc="left")
    axis.axis("off")
for offset in batch.offsets.tolist():
    packed.text(offset, -0.35, offset, size=8, ha="center")  # where a sequence begins, or the last one ends
plt.show()

# %% [markdown]
# Only attention and the position numbers need to know where a sequence begins. In a packed batch, the result
# of a sequence is the same as if the sequence were alone.

# %%
with torch.no_grad():
    together = teacher.encoder(batch)  # (N, D)
    alone = torch.cat([teacher.encoder(minibert.pack([sequence])) for sequence in ids])
print("states", tuple(together.shape), "  largest difference", f"{(together - alone).abs().max():.1e}")
assert torch.allclose(together, alone, atol=1e-5)

# %% [markdown]
# ## 2. Attention
#
# The hidden state of a token is a vector of D numbers. It starts as the sum of three rows of tables: one row
# for the piece, one for the position, and one for the first or second text. Then each layer changes it in two
# parts. Each part adds its result to the hidden state, and a LayerNorm follows:
#
# 1. **attention**, which takes information from the other tokens of the sequence
# 2. **feed-forward**, a small network that sees one token at a time
#
# In attention, the query q, the key k and the value v of a token are linear functions of its hidden state,
# for each head. The score of token i and token j is q_i k_j' / sqrt(E), where ' means transposed. The
# attention is the softmax of the scores over all tokens j. The output for token i is the mean of the values,
# weighted with the attention (Vaswani et al. 2017, equation 1).

# %%
def attention(q, k):
    """The probabilities (H, T, T) of one sequence; q and k are (T, H, E)."""
    scores = torch.einsum("ihe,jhe->hij", q, k) / math.sqrt(q.shape[-1])
    return scores.softmax(-1)


trace = teacher.encoder.trace(batch)  # the hidden states of all layers, and their q, k, v
q, k, v = trace.queries[2], trace.keys[2], trace.values[2]  # of the third layer, (N, H, E) each

from minibert.model.attention import attend

by_hand = torch.cat([torch.einsum("hij,jhe->ihe", attention(q[a:b], k[a:b]), v[a:b])
                     for a, b in itertools.pairwise(batch.offsets.tolist())])  # one sequence after the other
fast = attend(q, k, v, batch)  # what the model runs: neighbours of equal length in one call
print("largest difference", f"{(by_hand - fast).abs().max():.1e}")
assert torch.allclose(by_hand, fast, atol=1e-5)

# %% [markdown]
# Each row of a heat map has the attention of one token, and its sum is 1. The heads differ: most of the
# attention of head 1 is near the diagonal, so a token attends to its neighbours. In head 7 most tokens attend
# to `[CLS]`.

# %%
sentence = "If the file does not exist, an error is raised."


def heat(axis, matrix, pieces, title):
    image = axis.imshow(matrix, cmap="viridis", vmin=0, vmax=1)
    axis.set_xticks(range(len(pieces)), pieces, rotation=90, fontsize=7)
    axis.set_yticks(range(len(pieces)), pieces, fontsize=7)
    axis.set_xlabel("attends to", fontsize=8)
    axis.set_title(title, fontsize=9)
    return image


def attention_of(model, sentence, layer):
    """The attention (H, T, T) of a layer (from 0) for one sentence, and the pieces of the sentence."""
    ids, _ = tokenizer.encode([sentence])
    with torch.no_grad():
        trace = model.encoder.trace(minibert.pack(ids))
    return attention(trace.queries[layer], trace.keys[layer]), [tokenizer.id_to_piece(i) for i in ids[0]]


heads, pieces = attention_of(teacher, sentence, layer=1)
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
for axis, head in zip(axes, (0, 3, 6)):
    image = heat(axis, heads[head], pieces, f"layer 2, head {head + 1}")
axes[0].set_ylabel("token", fontsize=8)
figure.colorbar(image, ax=axes, label="attention", shrink=0.7)
plt.show()
assert torch.allclose(heads.sum(-1), torch.ones(c.heads, len(pieces)), atol=1e-5)

# %% [markdown]
# ## 3. The MLM head predicts a masked word
#
# The MLM head computes one logit for each piece of the vocabulary from the last hidden state of a token. It
# has a dense layer with an activation and a LayerNorm. The result is multiplied with the word table. The
# embeddings use the same word table.

# %%
gap = "The function returns a [MASK] of strings."
ids_gap, _ = tokenizer.encode([gap])
at = ids_gap[0].index(tokenizer.mask_id)
with torch.no_grad():
    last = teacher.encoder(minibert.pack(ids_gap))  # (N, D)
    head = teacher.mlm
    states = head.norm(F.gelu(head.dense(last)))  # (N, D)
    logits = states @ teacher.encoder.word.weight.T + head.bias  # (N, V)
    assert torch.allclose(logits, teacher(minibert.pack(ids_gap)), atol=1e-4)
probabilities, best = logits[at].softmax(-1).topk(8)

figure, axis = plt.subplots(figsize=(6, 2.2))
axis.barh(range(8), probabilities)
axis.set_yticks(range(8), [tokenizer.id_to_piece(i) for i in best])
axis.invert_yaxis()
axis.set(title=gap, xlabel="probability")
plt.show()
assert "list" in [tokenizer.id_to_piece(i) for i in best[:3]]

# %% [markdown]
# ## 4. Masking: 80, 10, 10
#
# In every step of the training, 15 % of the tokens are selected at random. 80 % of the selected tokens become
# `[MASK]`, 10 % become a random piece, and 10 % do not change (Devlin et al. 2018). The model must predict
# the original pieces of the selected tokens. It does not know which of the unmasked tokens were selected.

# %%
from minibert.data.masking import Masking, mask_tokens
from minibert.data.python_docs import is_held_out, python_docs

# docstrings of Python's standard library; the teacher was not trained on the held-out lines either
training_lines, held_out_lines = [], []
for module, text in itertools.islice(python_docs(), 130):
    target = held_out_lines if is_held_out(module) else training_lines
    target += [line for line in text.split("\n") if 60 < len(line) < 220 and " the " in line]
print(f"{len(training_lines):,} lines and {len(held_out_lines)} held out, for instance: {training_lines[0]}")

corpus_ids, _ = tokenizer.encode(training_lines)
stream, lengths = np.concatenate(corpus_ids), np.array([len(sequence) for sequence in corpus_ids])
masked = mask_tokens(stream, lengths, tokenizer, Masking("bernoulli", share=0.15), 0)  # 0: the seed
chosen, became = stream[masked.selected], masked.inputs[masked.selected]
shares = {"[MASK]": (became == tokenizer.mask_id).mean(),
          "another piece": ((became != tokenizer.mask_id) & (became != chosen)).mean(),
          "as it was": (became == chosen).mean()}
ordinary = ~tokenizer.special[stream]

figure, axis = plt.subplots(figsize=(6, 1.6))
left = 0
for name, share in shares.items():
    axis.barh(0, share, left=left, label=f"{name}: {share:.1%}")
    left += share
axis.set(title=f"{masked.selected.sum():,} of {ordinary.sum():,} tokens selected: "
               f"{masked.selected.sum() / ordinary.sum():.1%}", yticks=[], xlim=(0, 1))
axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=3, frameon=False)
plt.show()
assert abs(masked.selected.sum() / ordinary.sum() - 0.15) < 0.01
assert abs(shares["[MASK]"] - 0.8) < 0.03 and abs(shares["another piece"] - 0.1) < 0.03
assert not tokenizer.special[chosen].any()  # [CLS] and [SEP] are never selected

# %% [markdown]
# ## 5. The student starts as a copy of teacher layers
#
# A DistilBERT student starts with copies of half of the teacher's layers (Sanh et al. 2019, section 3). The
# embeddings and the head are also copied. For a teacher of 12 layers, the first layer, the last layer and
# four layers between them are copied.

# %%
from minibert.distill.students import copied_layers

assert copied_layers(6, 12) == [0, 2, 4, 7, 9, 11]  # counted from 0
layers = copied_layers(2, c.layers)
student = minibert.make_student(teacher, layers=2)
kept = sum(p.numel() for p in student.parameters()) / sum(p.numel() for p in teacher.parameters())
print(f"layers {[layer + 1 for layer in layers]} of {c.layers}; {kept:.0%} of the parameters")
assert torch.equal(student.encoder.layers[1].query.weight, teacher.encoder.layers[3].query.weight)

# %% [markdown]
# How much worse is the student before any training? Teacher and student predict masked words in held-out
# lines. The perplexity is exp(mean cross-entropy). A model that chooses among k words at random has
# perplexity k.

# %%
from minibert.inference.predict import where_it_is
from minibert.model.batch import Step
from minibert.training.evaluate import evaluate_mlm

unseen = minibert.masked_batch(tokenizer, held_out_lines, selection="bernoulli")
held_out = Step(micro_batches=[unseen], tokens=len(unseen.labels), masked=len(unseen.masked),
                sequences=len(held_out_lines))
runtime = where_it_is(teacher)  # the device and the precision of the model
print(f"{held_out.masked} masked tokens")
scores = {"teacher": evaluate_mlm(teacher, held_out, runtime),
          "cut": evaluate_mlm(student, held_out, runtime, teacher)}
for name, score in scores.items():
    print(f"{name:8} perplexity {score['perplexity']:6.1f}   right at masks {score['accuracy']:.1%}")
assert scores["cut"]["perplexity"] > 2 * scores["teacher"]["perplexity"]

# %% [markdown]
# ## 6. The three losses, by hand
#
# The loss of DistilBERT has three terms:
#
# - **KL**: at all tokens, the student should predict the same probabilities as the teacher. T is the
#   temperature, here 2. `L_kl = T² mean over tokens of KL(softmax(z_t / T) || softmax(z_s / T))`
# - **MLM**: the student should predict the original words of the tokens that were selected in masking.
#   `L_mlm = mean over selected tokens of -log softmax(z_s)[word]`
# - **cosine**: the student's last hidden states should have the directions of the teacher's last hidden
#   states.
#   `L_cos = mean over tokens of 1 - cos(h_s, h_t)`
#
# z are logits, and h are last hidden states. The index s means the student, and t the teacher. The loss is 5
# L_kl + 2 L_mlm + 1 L_cos. Without the library, it takes ten lines of code.

# %%
masked_lines = minibert.masked_batch(tokenizer, training_lines[:16])
batch, labels = masked_lines.batch, masked_lines.labels  # labels (N,): the word, or -100 if not selected

h_s, h_t = student.encoder(batch), teacher.encoder(batch)  # (N, D); both are in eval mode
z_s = student.mlm.logits(h_s, student.encoder.word.weight)  # (N, V)
z_t = teacher.mlm.logits(h_t, teacher.encoder.word.weight)
temperature = 2.0
log_p_t, log_p_s = (z_t / temperature).log_softmax(-1), (z_s / temperature).log_softmax(-1)
p_t, p_s = log_p_t.exp(), log_p_s.exp()
kl = temperature**2 * (p_t * (log_p_t - log_p_s)).sum(-1).mean()
at_masks = labels != -100
mlm = -z_s.log_softmax(-1)[at_masks, labels[at_masks]].mean()
cosine = (1 - (h_s * h_t).sum(-1) / (h_s.norm(dim=-1) * h_t.norm(dim=-1))).mean()
loss = 5 * kl + 2 * mlm + cosine
print(f"kl {kl:.4f}   mlm {mlm:.4f}   cosine {cosine:.4f}   loss {loss:.4f}")

# %% [markdown]
# The library computes the same numbers with less memory. It computes the rows of the logits (N, V) in chunks,
# so the logits of all tokens are never in memory at the same time.

# %%
library_loss, terms = minibert.distillation_loss("distilbert", student, teacher, masked_lines)
for name, value in {"kl": kl, "mlm": mlm, "cosine": cosine}.items():
    print(f"{name:8} by hand {value:.6f}   library {terms[name]:.6f}")
    assert abs(value - terms[name]) < 1e-5 * max(1, abs(value))
assert abs(loss - library_loss) < 1e-5 * loss

# %% [markdown]
# The gradients can also be computed by hand. For one row of logits, d KL / d z_s = T (softmax(z_s / T) -
# softmax(z_t / T)), and d MLM / d z_s = softmax(z_s) - onehot(label). Both gradients are a difference: the
# student's probabilities minus the probabilities that it should have.

# %%
parameters = [p for p in student.parameters() if p.requires_grad]
automatic = torch.autograd.grad(loss, [z_s, *parameters], retain_graph=True)
with torch.no_grad():
    onehot = F.one_hot(labels[at_masks], z_s.shape[1])
    by_hand = 5 * temperature * (p_s - p_t) / len(z_s)  # the loss is a mean over tokens
    by_hand[at_masks] += 2 * (z_s[at_masks].softmax(-1) - onehot) / at_masks.sum()
print("largest difference by the logits", f"{(by_hand - automatic[0]).abs().max():.1e}")
assert torch.allclose(by_hand, automatic[0], atol=1e-6)

library = torch.autograd.grad(library_loss, parameters)
library, automatic = (torch.cat([g.flatten() for g in gradients]) for gradients in (library, automatic[1:]))
print("relative difference by the parameters", f"{(library - automatic).norm() / automatic.norm():.1e}")
assert (library - automatic).norm() < 1e-5 * automatic.norm()

# %% [markdown]
# ## 7. Why T squared?
#
# A temperature above 1 makes the probabilities more equal, so the student also learns which words are the
# teacher's second and third choices. But a higher temperature makes the gradient smaller. For large T, the
# gradient shrinks like 1 / T². One factor 1 / T comes from z / T. The other factor comes from the difference
# of the two distributions, which become more similar (Hinton et al. 2015). The factor T² in the loss
# compensates for this: from T = 4 on, the orange line falls much less than the blue line. Without T², the
# weight of the KL in the loss would depend on T. Between T = 2 and T = 4 both lines fall, because 1 / T² is
# only true for large T.

# %%
temperatures = [1, 2, 4, 8, 16]
sizes = []
for T_ in temperatures:
    with torch.no_grad():
        sizes.append(((z_s / T_).softmax(-1) - (z_t / T_).softmax(-1)).norm() / T_)  # without T squared
sizes = torch.stack(sizes)

figure, axis = plt.subplots(figsize=(5, 2.6))
axis.loglog(temperatures, sizes / sizes[0], "o-", label="without T²")
axis.loglog(temperatures, sizes * torch.tensor(temperatures)**2 / sizes[0], "o-", label="times T²")
axis.set(xlabel="T", title="gradient by the logits, compared with T = 1")
axis.set_xticks(temperatures, temperatures)
axis.minorticks_off()
axis.legend(frameon=False)
plt.show()
assert sizes[4] / sizes[3] < 0.3  # from T = 8 to 16 the gradient falls to about a quarter
assert 0.5 < sizes[4] * 256 / (sizes[3] * 64) < 1.5  # with T squared it stays about equal

# %% [markdown]
# ## 8. Fifty steps
#
# In each step, 16 lines get new masks. Then the loss and its gradient are computed, and AdamW changes the
# weights. The learning rate rises for 5 steps and then falls to 0. The KL and the cosine term fall quickly.
# The MLM term varies much, because a step has few masked tokens.

# %%
import copy

from minibert.training.optim import learning_rate

cut = copy.deepcopy(student)  # the student before training
student.train()  # with dropout
optimizer = torch.optim.AdamW(student.parameters(), betas=(0.9, 0.98), weight_decay=0.0)
steps, rows, rng = 50, [], np.random.default_rng(0)
for step in range(steps):
    chosen_lines = rng.choice(len(training_lines), 16, replace=False)
    lines = [training_lines[i] for i in chosen_lines]
    data = minibert.masked_batch(tokenizer, lines, seed=step, max_length=64)
    loss, terms = minibert.distillation_loss("distilbert", student, teacher, data)
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(step, steps, peak=5e-4, warmup=5)
    optimizer.step()
    rows.append({"loss": loss.item(), **terms})
student.eval()

figure, axes = plt.subplots(1, 4, figsize=(11, 2.3))
for axis, term in zip(axes, ("loss", "kl", "mlm", "cosine")):
    axis.plot([row[term] for row in rows])
    axis.set(title=term, xlabel="step")
figure.tight_layout()
plt.show()
first, final = (np.mean([row["loss"] for row in part]) for part in (rows[:10], rows[-10:]))
assert final < first

# %% [markdown]
# ## 9. Before and after
#
# Fifty steps are few: the published student was trained for 90 hours on eight GPUs. But the student is now
# more similar to its teacher, also on held-out lines. The KL below has the temperature 1. Most of the trained
# student's answers are still wrong.

# %%
scores["trained"] = evaluate_mlm(student, held_out, runtime, teacher)
for name, score in scores.items():
    closeness = f"   KL to the teacher {score['kl']:.3f}" if "kl" in score else ""
    print(f"{name:8} perplexity {score['perplexity']:6.1f}   right at masks {score['accuracy']:.1%}"
          + closeness)
assert scores["trained"]["kl"] < scores["cut"]["kl"]
assert scores["trained"]["perplexity"] < scores["cut"]["perplexity"]

from minibert.inference.predict import fill_masks

models = {"teacher": teacher, "cut": cut, "trained": student}
for question in (gap, "If the file does not [MASK], an error is raised.",
                 "Return [MASK] if the object is a string."):
    print(f"\n{question}")
    for name, model in models.items():
        answers = fill_masks(model, tokenizer, question)[0]
        print(f"  {name:8}", "  ".join(f"{piece} {p:.0%}" for piece, p in answers))

# %% [markdown]
# The heat maps show the attention of the last layer, as a mean over its heads. The student's layer 2 was
# copied from the teacher's layer 4, but its input comes from layer 1 and not from layer 3. After the
# training, the student's attention is nearer to the teacher's.

# %%
maps = {name: attention_of(model, sentence, layer=-1)[0].mean(0) for name, model in models.items()}
figure, axes = plt.subplots(1, 3, figsize=(11, 3.6), layout="constrained")
for axis, (name, attended) in zip(axes, maps.items()):
    image = heat(axis, attended, pieces, f"{name}, last layer")
axes[0].set_ylabel("token", fontsize=8)
figure.colorbar(image, ax=axes, label="attention", shrink=0.7)
plt.show()
distance = {name: (maps[name] - maps["teacher"]).abs().sum(-1).mean().item() / 2
            for name in ("cut", "trained")}
print("share of the attention that is at other tokens than the teacher's:",
      "  ".join(f"{name} {share:.0%}" for name, share in distance.items()))
assert distance["trained"] < distance["cut"]

# %% [markdown]
# ## 10. The same student in `transformers`
#
# A student is saved as a Hugging Face folder. `transformers` can load this folder without minibert.

# %%
import importlib.util
import tempfile
import warnings

with tempfile.TemporaryDirectory() as folder:
    minibert.save(student, folder, tokenizer)
    print(sorted(path.name for path in Path(folder).iterdir()))
    if importlib.util.find_spec("transformers"):
        warnings.filterwarnings("ignore", "IProgress not found")  # a warning about progress bars in notebooks
        import transformers

        transformers.logging.disable_progress_bar()
        loaded = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
        with torch.no_grad():
            there = loaded(input_ids=torch.tensor(ids_gap)).logits[0]  # (T, V)
            here = student(minibert.pack(ids_gap))
        print(type(loaded).__name__, "largest difference of logits", f"{(there - here).abs().max():.1e}")
        assert torch.allclose(there, here, atol=1e-4)
    else:
        print("transformers is not installed, so this is not compared: pip install transformers")

# %% [markdown]
# ## What to read next
#
# - [Twelve functions to write yourself](exercises.md): a test checks each function.
# - `make demo` starts a real training, and `python train.py --help` lists the options. `train.py` has the
#   same loop as above, with checkpoints and output files.
# - [DistilBERT](distilbert.md): the method of this tour. The other methods: [TinyBERT](tinybert.md),
#   [MiniLM](minilm.md), [MobileBERT](mobilebert.md), [fine-tuning](fine-tuning.md).
