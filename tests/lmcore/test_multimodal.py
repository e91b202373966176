"""Tests of lmcore.multimodal and lmcore.shapes: by hand, against transformers."""

import itertools
import math
import re
import warnings
from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from lmcore import multimodal, shapes, transformer
from lmcore.transformer import LayerConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # about their own imports
    from transformers import ViTConfig, ViTModel
    from transformers.models.clip.modeling_clip import image_text_contrastive_loss

close = partial(torch.testing.assert_close, atol=1e-5, rtol=0.0)
B, T, C = 2, 5, 12
CONFIG = LayerConfig(d_model=C, n_heads=3, d_ff=10)


def dice(device, seed=1):
    return torch.Generator(device).manual_seed(seed)


def perturbed(module):
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return module


def vit(device, image_size=12, patch_size=4, config=CONFIG, n_layers=2):
    return multimodal.ViT(
        config,
        n_layers,
        image_size=image_size,
        patch_size=patch_size,
        generator=dice(device),
    )


# --- Shapes -------------------------------------------------------------------------


@pytest.mark.parametrize("place", shapes.PLACES)
def test_shape_is_where_its_caption_says(place, device):
    for kind in shapes.KINDS:
        image = shapes.draw_shape(kind, "green", place)
        rows, columns = image[1].nonzero().float().mean(dim=0) / 15
        assert (rows < 0.5) == place.startswith("top")
        assert (columns < 0.5) == place.endswith("left")
        colours = image[:, image[1] > 0]
        close(
            colours, torch.tensor(shapes.COLOURS["green"])[:, None].expand_as(colours)
        )


def test_kinds_differ():
    areas = [(shapes.draw_shape(k, "red", "top left") > 0).sum() for k in shapes.KINDS]
    assert len({int(area) for area in areas}) == 3


def test_shapes_are_repeatable_and_varied():
    some, again = (
        shapes.draw_shapes(60, dice("cpu")),
        shapes.draw_shapes(60, dice("cpu")),
    )
    assert torch.equal(some.images, again.images)
    assert some.captions == again.captions
    assert len(set(some.captions)) > 20
    assert some.images.min() == 0
    assert some.images.max() == 1
    for image, caption in zip(some.images, some.captions, strict=True):
        _, colour, kind, place = caption.split(maxsplit=3)
        still = shapes.draw_shape(kind, colour, place)
        close(image.amax(dim=(1, 2)), still.amax(dim=(1, 2)))


def test_captions_come_back():
    captions = [*shapes.draw_shapes(20, dice("cpu")).captions, "a red"]
    ids = shapes.encode_captions(captions)
    assert ids.shape == (21, 7)
    assert ids[-1].tolist() == [1, 3, 4, 2, 0, 0, 0]
    assert [shapes.decode_caption(row) for row in ids] == captions


# --- Patches and ViT ----------------------------------------------------------------


def test_patchify_by_hand(device):
    image = torch.arange(16, device=device).view(1, 1, 4, 4)
    patches = multimodal.patchify(image, 2)
    expected = [[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]
    assert patches[0].tolist() == expected


@given(
    rows=st.integers(1, 4),
    columns=st.integers(1, 4),
    size=st.integers(1, 3),
    channels=st.integers(1, 3),
)
def test_patches_equal_unfold_and_come_back(rows, columns, size, channels):
    images = torch.randn(B, channels, rows * size, columns * size)
    patches = multimodal.patchify(images, size)
    expected = F.unfold(images, size, stride=size).transpose(1, 2)
    assert torch.equal(patches, expected)
    assert torch.equal(multimodal.unpatchify(patches, size, columns), images)


def test_vit_equals_transformers(device):
    theirs_config = ViTConfig(
        hidden_size=C,
        num_hidden_layers=2,
        num_attention_heads=3,
        intermediate_size=10,
        image_size=12,
        patch_size=4,
        layer_norm_eps=1e-5,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        attn_implementation="eager",
    )
    oracle = perturbed(ViTModel(theirs_config, add_pooling_layer=False)).to(device)
    names = {
        "embeddings.cls_token": "class_token",
        "embeddings.position_embeddings": "position",
        "embeddings.patch_embeddings.projection": "project_patch",
        "layernorm_before": "around_self_attention.norm",
        "layernorm_after": "around_feed_forward.norm",
        "attention.q_proj": "self_attention.heads.project_query",
        "attention.k_proj": "self_attention.heads.project_key",
        "attention.v_proj": "self_attention.heads.project_value",
        "attention.o_proj": "self_attention.heads.project_output",
        "mlp.fc1": "feed_forward.project_up",
        "mlp.fc2": "feed_forward.project_down",
    }

    def ours(name):
        for their, our in names.items():
            name = name.replace(their, our)
        name = re.sub(r"^layernorm\.", "encoder.final_norm.", name)
        return re.sub(r"^layers\.", "encoder.layers.", name)

    model = vit(device)
    wanted = {name: p.shape for name, p in model.named_parameters()}
    state = {
        ours(name): p.detach().reshape(wanted[ours(name)])
        for name, p in oracle.named_parameters()
    }
    model.load_state_dict(state)
    images = torch.randn(B, 3, 12, 12, device=device)
    output, expected = model(images), oracle(images).last_hidden_state
    assert output.shape == (B, 10, C)
    close(output, expected)
    upstream = torch.randn_like(output)
    gradients = torch.autograd.grad(output, list(model.parameters()), upstream)
    found = dict(zip(wanted, gradients, strict=True))
    expected.backward(upstream)
    for name, parameter in oracle.named_parameters():
        close(found[ours(name)], parameter.grad.reshape(wanted[ours(name)]), rtol=1e-5)


# --- CLIP ---------------------------------------------------------------------------


def logits_as_features(logits):
    """Features of length 1 whose cosines are the logits / 4, for logits up to 4."""
    n = len(logits)
    rows = logits / 4
    rest = (1 - rows.square().sum(dim=1, keepdim=True)).sqrt()
    images = torch.cat([rows, rest], dim=1)
    return images, torch.eye(n, n + 1)


def test_clip_loss_by_hand():
    """[[2, 0], [2, 0]]: pictures lose 1.1269, texts .6931, in the mean .9100."""
    images, texts = logits_as_features(torch.tensor([[2.0, 0.0], [2.0, 0.0]]))
    loss = multimodal.clip_loss(images, texts, math.log(4))
    of_images = (math.log(1 + math.exp(-2)) + math.log(1 + math.exp(2))) / 2
    close(loss, torch.tensor((of_images + math.log(2)) / 2))
    assert loss.item() == pytest.approx(0.9100, abs=1e-4)


@pytest.mark.parametrize("log_scale", [0.0, 2.659, 4.0])
def test_clip_loss_equals_transformers(log_scale, device):
    images, texts = torch.randn(2, 5, C, device=device).requires_grad_().unbind()
    scale = torch.tensor(log_scale, device=device, requires_grad=True)
    loss = multimodal.clip_loss(images, texts, scale)
    cosines = F.normalize(texts, dim=-1) @ F.normalize(images, dim=-1).T
    expected = image_text_contrastive_loss(scale.exp() * cosines)
    close(loss, expected)
    inputs = [images, texts, scale]
    ours = torch.autograd.grad(loss, inputs, retain_graph=True)
    theirs = torch.autograd.grad(expected, inputs)
    for gradient, wanted in zip(ours, theirs, strict=True):
        close(gradient, wanted)
    close(multimodal.clip_loss(10 * images, texts / 7, scale), loss)


def test_clip_scale_is_capped_and_nothing_costs_ln_b(device):
    images, texts = torch.randn(2, 5, C, device=device)
    capped = multimodal.clip_loss(images, texts, 10.0)
    close(capped, multimodal.clip_loss(images, texts, math.log(100.0)))
    alike = torch.ones(5, C, device=device)
    close(multimodal.clip_loss(alike, alike, 1.0).cpu(), torch.tensor(math.log(5)))


def clip(device, config=CONFIG, size=12, patch_size=4, n_layers=1):
    return multimodal.CLIP(
        vit(device, size, patch_size, config, n_layers),
        config,
        n_layers,
        n_words=len(shapes.WORDS),
        max_len=9,
        generator=dice(device),
    )


def test_clip_does_not_see_padding(device):
    model = perturbed(clip(device))
    ids = torch.tensor([[1, 3, 4, 2], [1, 5, 2, 0]], device=device)
    together = model.encode_text(ids)
    close(model.encode_text(F.pad(ids, (0, 3))), together)
    close(model.encode_text(ids[1:, :3]), together[1:])
    assert clip(device).log_scale.exp().item() == pytest.approx(1 / 0.07)


def test_clip_learns_its_scale(device):
    model = clip(device)
    ids = torch.tensor([[1, 3, 2], [1, 4, 2], [1, 5, 2]], device=device)
    model(torch.randn(3, 3, 12, 12, device=device), ids).backward()
    assert "log_scale" in dict(model.named_parameters())
    assert model.log_scale.grad.abs() > 0


def test_class_token_speaks_for_the_picture(device):
    """Whatever the patches became: it alone goes into the common space."""
    model = clip(device)
    tokens = torch.full((2, 10, C), torch.nan, device=device)
    tokens[:, 0] = torch.randn(2, C, device=device)
    model.vision.forward = lambda images: tokens
    found = model.encode_image(torch.zeros(2, 3, 12, 12, device=device))
    close(found, tokens[:, 0] @ model.project_image.weight.T)


def test_clip_matches_shapes_with_captions(device):
    """After a few seconds, most pictures choose their own caption among sixteen."""
    model = clip(device, LayerConfig(d_model=24, n_heads=2, d_ff=48), 16, 4)
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    draw = dice("cpu")
    some = shapes.draw_shapes(160, draw)
    ids = shapes.encode_captions(some.captions).to(device)
    images = some.images.to(device)
    losses = []
    for _ in range(60):
        rows = torch.randint(160, (16,), generator=draw)
        loss = model(images[rows], ids[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2.0
    assert sum(losses[-10:]) / 10 < 1.2, losses[-10:]


# --- The captioner ------------------------------------------------------------------


def captioner(device, config=CONFIG, size=12, patch_size=4):
    return multimodal.CrossAttentionCaptioner(
        vit(device, size, patch_size, config, 1),
        config,
        1,
        n_words=len(shapes.WORDS),
        max_len=9,
        generator=dice(device),
    )


def test_words_ask_and_patches_answer(device):
    """As many scores as words; each word sees the picture and the words before it."""
    model = perturbed(captioner(device))
    images = torch.randn(B, 3, 12, 12, device=device)
    ids = torch.randint(3, 15, (B, T), device=device)
    logits = model(images, ids)
    assert logits.shape == (B, T, 15)
    other = ids.clone()
    other[:, 3] = (other[:, 3] - 2) % 12 + 3
    changed = model(images, other)
    close(changed[:, :3], logits[:, :3])
    assert (changed[:, 3:] - logits[:, 3:]).abs().amax(dim=-1).min() > 1e-4
    swapped = model(images.flip(0), ids)
    assert (swapped - logits).abs().amax(dim=-1).min() > 1e-4
    written = model.describe(images, max_tokens=6)
    assert written.shape[1] <= 6
    for row in range(B):
        ids = torch.ones(1, 1, dtype=torch.int64, device=device)
        for word in written[row].tolist():
            best = model(images[row : row + 1], ids)[0, -1].argmax().item()
            assert word == best
            if word == 2:
                break
            ids = torch.cat([ids, torch.tensor([[word]], device=device)], dim=1)


def test_nothing_but_the_end_follows_the_end(device):
    """Two pictures and a writer whose next word depends on its last one alone."""
    model = captioner(device)
    # 2 ends a text; without an end, 5 would come next.
    follows = torch.tensor([0, 3, 5, 4, 2, 6, 6], device=device)
    begins = torch.tensor([2, 3], device=device)

    def write(patches, ids):
        word = follows[ids]
        word[:, 0] = begins
        return F.one_hot(word, 7).float()

    model._write = write
    said = model.describe(torch.zeros(2, 3, 12, 12, device=device))
    assert said.tolist() == [[2, 2, 2], [3, 4, 2]]
    said = model.describe(torch.zeros(2, 3, 12, 12, device=device), max_tokens=2)
    assert said.tolist() == [[2, 2], [3, 4]]


def test_captioner_learns_four_pictures(device):
    model = captioner(device, LayerConfig(d_model=24, n_heads=2, d_ff=48), 16, 8)
    some = shapes.draw_shapes(4, dice("cpu", 5))
    images = some.images.to(device)
    ids = shapes.encode_captions(some.captions).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for _ in range(60):
        logits = model(images, ids[:, :-1])
        loss = F.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    said = [shapes.decode_caption(row) for row in model.describe(images)]
    assert said == some.captions


# --- Diffusion ----------------------------------------------------------------------


def test_schedules_by_hand():
    """Linear of 1000 steps: from .0001 to .02; the first step has already noised."""
    close(multimodal.signal_kept(torch.tensor([0.1, 0.2])), torch.tensor([0.9, 0.72]))
    beta, kept = multimodal.noise_schedule(1000, "linear")
    close(beta[[0, -1]], torch.tensor([1e-4, 0.02]), atol=1e-7)
    close(kept[0], torch.tensor(1 - 1e-4), atol=1e-7)
    beta, kept = multimodal.noise_schedule(100)
    t = torch.tensor([1, 50]) / 100
    f = torch.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2
    first = math.cos(0.008 / 1.008 * math.pi / 2) ** 2
    close(kept[[0, 49]], f / first)
    assert beta[-1] == pytest.approx(0.999)


@pytest.mark.parametrize("kind", ["cosine", "linear"])
@pytest.mark.parametrize("n_steps", [1, 7, 50, 1000])
def test_schedules_go_down(kind, n_steps):
    beta, kept = multimodal.noise_schedule(n_steps, kind)
    assert beta.shape == kept.shape == (n_steps,)
    assert (beta > 0).all()
    assert (beta < 1).all()
    assert (kept.diff() < 0).all()
    close(kept, multimodal.signal_kept(beta.double()).float())
    if n_steps >= 50:
        assert kept[0] > 0.99
        assert kept[-1] < 1e-3


def test_each_picture_has_its_own_noise(device):
    """B = 2 and pictures of width 2: a factor on the wrong axis would fit."""
    images = torch.tensor([1.0, 2.0], device=device).view(2, 1, 1, 1).expand(2, 1, 2, 2)
    noise = torch.full_like(images, 10.0)
    kept = torch.tensor([1.0, 0.36], device=device)
    noised = multimodal.add_noise(images, noise, kept)
    close(noised[0].cpu(), torch.full((1, 2, 2), 1.0))
    close(noised[1].cpu(), torch.full((1, 2, 2), 0.6 * 2 + 0.8 * 10))


def test_noising_keeps_the_variance(device):
    images, noise = torch.randn(2, 4, 3, 80, 80, device=device)
    kept = torch.tensor([0.99, 0.7, 0.3, 0.01], device=device)
    noised = multimodal.add_noise(images, noise, kept)
    close(noised.var(dim=(1, 2, 3)).cpu(), torch.ones(4), atol=0.05)
    step_by_step = images
    for beta in (0.1, 0.2):
        fresh = torch.randn_like(images)
        step_by_step = (1 - beta) ** 0.5 * step_by_step + beta**0.5 * fresh
    correlation = (step_by_step * images).mean() / images.square().mean()
    assert correlation.item() == pytest.approx(0.72**0.5, abs=0.03)


def test_denoising_loss_asks_for_the_noise(device):
    """A model that sees through it has loss 0; steps differ within a batch."""
    kept = multimodal.noise_schedule(10, device=device)[1]
    images = torch.randn(100, 1, 4, 4, device=device)
    seen = []

    def knows(noised, steps, ids):
        seen.append(steps)
        share = kept[steps].view(-1, 1, 1, 1)
        return (noised - share.sqrt() * images) / (1 - share).sqrt()

    ids = torch.ones(100, 1, dtype=torch.int64, device=device)
    loss = multimodal.denoising_loss(knows, images, ids, kept, dice(device))
    close(loss, torch.zeros_like(loss), atol=1e-4)
    assert set(seen[0].tolist()) == set(range(10))
    nothing = multimodal.denoising_loss(
        lambda noised, *_: 0 * noised, images, ids, kept, dice(device)
    )
    assert nothing.item() == pytest.approx(1.0, abs=0.1)


def diffusion(device, n_steps=20, config=CONFIG, size=8, patch_size=4):
    return multimodal.TinyDiffusion(
        config,
        1,
        image_size=size,
        patch_size=patch_size,
        n_words=len(shapes.WORDS),
        max_len=9,
        n_steps=n_steps,
        generator=dice(device),
    )


def test_diffusion_knows_step_and_text(device):
    model = perturbed(diffusion(device))
    x = torch.randn(B, 3, 8, 8, device=device)
    ids = torch.tensor([[1, 3, 2], [1, 4, 2]], device=device)
    steps = torch.tensor([0, 19], device=device)
    noise = model(x, steps, ids)
    assert noise.shape == x.shape
    assert not torch.allclose(model(x, steps.flip(0), ids), noise, atol=1e-3)
    assert not torch.allclose(model(x, steps, ids.flip(0)), noise, atol=1e-3)
    close(model(x, steps, F.pad(ids, (0, 4))), noise)
    close(model(x[1:], steps[1:], ids[1:]), noise[1:])


def test_true_noise_leads_back_to_the_picture(device):
    """With a model that knows the picture, drawing ends at the picture itself."""
    model = diffusion(device)
    picture = torch.rand(1, 3, 8, 8, device=device) * 2 - 1

    def knows(x, steps, ids):
        share = model.kept[steps].view(-1, 1, 1, 1)
        return (x - share.sqrt() * picture) / (1 - share).sqrt()

    model.forward = knows
    ids = torch.tensor([[1, 2]], device=device)
    close(model.draw(ids, dice(device)), picture, atol=1e-3)
    close(model.draw(ids, dice(device), guidance=2.0), picture, atol=1e-3)


def test_patches_hear_of_each_other_and_know_their_places(device):
    """Noise is found in all patches at once: the last one counts for the first."""
    model = perturbed(diffusion(device))
    ids, steps = torch.tensor([[1, 3, 2]], device=device), ONE.to(device)
    x = torch.randn(1, 3, 8, 8, device=device, requires_grad=True)
    model(x, steps, ids)[..., :4, :4].square().sum().backward()
    for rows in (slice(4), slice(4, 8)):
        for columns in (slice(4), slice(4, 8)):
            assert x.grad[..., rows, columns].abs().max() > 0
    alike = model(torch.ones_like(x), steps, ids)
    patches = multimodal.patchify(alike, 4)[0]  # of one content, at four places
    for other in range(1, 4):
        assert (patches[0] - patches[other]).abs().max() > 1e-3


def test_drawing_follows_bayes_backwards(device):
    """Known are the picture and how a step noises: so is where a step came from.

    The place before the step has the precision of both together, and their mean.
    """
    model = diffusion(device)
    picture = torch.rand(64, 3, 8, 8, device=device) * 2 - 1
    seen = []

    def knows(x, steps, ids):
        seen.append(x)
        share = model.kept[steps].view(-1, 1, 1, 1)
        return (x - share.sqrt() * picture) / (1 - share).sqrt()

    model.forward = knows
    model.draw(torch.ones(64, 2, dtype=torch.int64, device=device), dice(device))
    assert len(seen) == 20
    for step in range(1, 20):
        x, before = seen[19 - step], seen[20 - step]
        kept, beta = model.kept[step - 1].double(), model.beta[step].double()
        precision = 1 / (1 - kept) + (1 - beta) / beta
        mean = kept.sqrt() * picture / (1 - kept) + (1 - beta).sqrt() * x / beta
        chance = (before - mean / precision) * precision.sqrt()
        assert chance.mean().item() == pytest.approx(0.0, abs=0.05)
        assert chance.std().item() == pytest.approx(1.0, abs=0.05)


@pytest.mark.parametrize(("guidance", "noise"), [(0.5, 2.0), (1.0, 3.0), (2.0, 5.0)])
def test_guidance_goes_from_no_text_to_the_text_and_on(guidance, noise, device):
    """Without a text the noise is 1, with it 3: on the line through both."""
    model = diffusion(device, n_steps=2)
    model.forward = lambda x, steps, ids: torch.full_like(x, 3.0 if ids.any() else 1.0)
    found = []

    def spy(x, noise, step):
        found.append(noise)
        return x

    model._step_back = spy
    model.draw(torch.tensor([[1, 3]], device=device), dice(device), guidance)
    for one in found:
        close(one, torch.full_like(one, noise))


def test_drawing_is_repeatable_and_bounded(device):
    model = diffusion(device)
    ids = torch.tensor([[1, 3, 2]], device=device)
    drawn = model.draw(ids, dice(device))
    assert torch.equal(drawn, model.draw(ids, dice(device)))
    assert drawn.abs().max() <= 1 + 1e-5
    guided = model.draw(ids, dice(device), guidance=3.0)
    assert not torch.equal(guided, drawn)


@pytest.mark.slow
def test_the_caption_decides_what_is_drawn_and_where(device):
    """Trained on shapes at random, each of the 48 captions is drawn after its words."""
    config = LayerConfig(d_model=48, n_heads=4, d_ff=96)
    draw = dice(device)
    model = multimodal.TinyDiffusion(
        config,
        2,
        image_size=8,
        patch_size=2,
        n_words=len(shapes.WORDS),
        max_len=9,
        n_steps=20,
        generator=draw,
    )
    data = shapes.draw_shapes(1024, draw, size=8)
    images = data.images.to(device) * 2 - 1
    ids = shapes.encode_captions(data.captions).to(device)
    optimizer = torch.optim.Adam(model.parameters())
    for step in range(900):
        optimizer.param_groups[0]["lr"] = 4e-3 * (1 - step / 900)
        rows = torch.randint(1024, (64,), generator=draw, device=device)
        texts = multimodal.drop_captions(ids[rows], 0.1, draw)
        loss = model.loss(images[rows], texts, draw)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    wanted = list(itertools.product(shapes.KINDS, shapes.COLOURS, shapes.PLACES))
    captions = [f"a {colour} {kind} {place}" for kind, colour, place in wanted]
    known = torch.stack([shapes.draw_shape(*one, size=8) for one in wanted]) * 2 - 1
    asked = shapes.encode_captions(captions).to(device)
    drawn = model.draw(asked, draw, guidance=2.0).cpu()
    nearest = torch.cdist(drawn.flatten(1), known.flatten(1)).argmin(dim=1)
    pairs = [(wanted[row], one) for row, one in zip(nearest, wanted, strict=True)]
    right = [sum(a[i] == b[i] for a, b in pairs) / len(wanted) for i in range(3)]
    # By chance 1 / 3, 1 / 4 and 1 / 4. Of 8 × 8 pixels, the kind is the hardest to see.
    assert right[1] > 0.75, "colours"
    assert right[2] > 0.9, "places"
    losses = [
        model.loss(images, texts, dice(device)).item()
        for texts in (ids, torch.zeros_like(ids), ids.roll(1, dims=0))
    ]
    assert losses == sorted(losses)  # the right text, none, a wrong one
    assert losses[2] > 2 * losses[0]


def test_noise_and_picture_follow_from_the_velocity(device):
    model = perturbed(diffusion(device))
    picture, noise = torch.randn(2, B, 3, 8, 8, device=device)
    ids = torch.tensor([[1, 3, 2], [1, 4, 2]], device=device)
    steps = torch.tensor([0, 18], device=device)
    kept = model.kept[steps]
    noised = multimodal.add_noise(picture, noise, kept)
    kept = kept.view(-1, 1, 1, 1)
    model.velocity = lambda *_: kept.sqrt() * noise - (1 - kept).sqrt() * picture
    close(model(noised, steps, ids), noise)


def test_loss_asks_for_the_velocity(device):
    """Nothing for the true one, and for none at all the mean of its square."""
    model = diffusion(device)
    picture = torch.ones(64, 3, 8, 8, device=device)
    ids = torch.ones(64, 2, dtype=torch.int64, device=device)

    def knows(noised, steps, ids):
        kept = model.kept[steps].view(-1, 1, 1, 1)
        noise = (noised - kept.sqrt() * picture) / (1 - kept).sqrt()
        return kept.sqrt() * noise - (1 - kept).sqrt() * picture

    model.velocity = knows
    close(model.loss(picture, ids, dice(device)), torch.tensor(0.0, device=device))
    model.velocity = lambda noised, steps, ids: torch.zeros_like(noised)
    found = model.loss(picture, ids, dice(device)).item()
    assert found == pytest.approx(1.0, abs=0.05)  # noise and picture have 1 each


def test_some_pictures_lose_their_caption(device):
    ids = torch.tensor([[1, 3, 2]] * 400, device=device)
    found = multimodal.drop_captions(ids, 0.25, dice(device))
    lost = (found == 0).all(dim=1)
    assert lost.float().mean().item() == pytest.approx(0.25, abs=0.06)
    assert torch.equal(found[~lost], ids[~lost])
    assert (ids != 0).all()  # what was given stays
    assert torch.equal(multimodal.drop_captions(ids, 0.0, dice(device)), ids)
    assert not multimodal.drop_captions(ids, 1.0, dice(device)).any()


# --- Refusals -----------------------------------------------------------------------

IMAGE, IDS = torch.zeros(1, 3, 8, 8), torch.ones(1, 10, dtype=torch.int64)
ONE = torch.zeros(1, dtype=torch.int64)


@pytest.mark.parametrize(
    ("call", "values"),
    [
        (lambda: multimodal.patchify(IMAGE, 3), ["patch_size=3", "8"]),
        (lambda: multimodal.patchify(IMAGE[0], 4), ["(3, 8, 8)"]),
        (
            lambda: multimodal.unpatchify(torch.zeros(1, 4, 12), 2, 3),
            ["(1, 4, 12)", "3"],
        ),
        (lambda: vit("cpu", 5, 2), ["patch_size=2", "image_size=5"]),
        (lambda: vit("cpu")(IMAGE), ["(1, 3, 8, 8)", "12"]),
        (
            lambda: multimodal.clip_loss(torch.ones(2, 3), torch.ones(2, 4), 0.0),
            ["(2, 3)", "(2, 4)"],
        ),
        (lambda: clip("cpu").encode_text(IDS), ["10", "9"]),
        (lambda: captioner("cpu")(torch.zeros(1, 3, 12, 12), IDS), ["10", "9"]),
        (lambda: multimodal.noise_schedule(0), ["n_steps=0"]),
        (lambda: multimodal.noise_schedule(5, "square"), ["'square'"]),
        (lambda: multimodal.signal_kept(torch.tensor([1.5])), ["1.5"]),
        (
            lambda: multimodal.add_noise(IMAGE, IMAGE[:, :1], torch.ones(1)),
            ["(1, 3, 8, 8)", "(1, 1, 8, 8)"],
        ),
        (lambda: multimodal.add_noise(IMAGE, IMAGE, torch.ones(3)), ["(3,)"]),
        (lambda: multimodal.drop_captions(IDS, 1.5, dice("cpu")), ["share=1.5"]),
        (lambda: diffusion("cpu", size=6), ["patch_size=4", "image_size=6"]),
        (lambda: diffusion("cpu")(IMAGE[..., :4], ONE, IDS), ["(1, 3, 8, 4)"]),
        (lambda: diffusion("cpu")(IMAGE, ONE, IDS), ["10", "9"]),
        (lambda: shapes.draw_shape("star", "red", "top left"), ["'star'"]),
        (lambda: shapes.draw_shape("cross", "pink", "top left"), ["'pink'"]),
        (lambda: shapes.draw_shape("cross", "red", "middle"), ["'middle'"]),
        (lambda: shapes.draw_shape("cross", "red", "top left", 4), ["size=4"]),
        (lambda: shapes.draw_shapes(0, torch.Generator()), ["n_images=0"]),
        (lambda: shapes.encode_captions(["a pink cross"]), ["'pink'"]),
        (lambda: shapes.encode_captions([]), ["0 captions"]),
    ],
)
def test_refusal_names_the_values(call, values):
    with pytest.raises(ValueError) as caught:  # noqa: PT011
        call()
    for value in values:
        assert re.search(re.escape(value), str(caught.value)), str(caught.value)


def test_readers_in_half_precision(device):
    model = vit(device).to(torch.bfloat16)
    images = torch.zeros(1, 3, 12, 12, device=device, dtype=torch.bfloat16)
    assert model(images).dtype == torch.bfloat16
    assert isinstance(model.encoder, transformer.Encoder)
