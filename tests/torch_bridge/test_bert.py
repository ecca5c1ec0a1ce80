"""BERT crosses to `transformers.BertModel` and back; every layer and gradient agrees."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from fakes import text_model
from flax import traverse_util

from htnet_jax.models import bert
from htnet_jax.torch_bridge import bert as bridge
from htnet_jax.torch_bridge import convert

transformers = pytest.importorskip("transformers", reason="needs the extra `test`")

KEYS = [key for key in text_model.CONFIG if key not in ("architectures", "model_type")]
# Two sentences; the second has padding. Token 0 has no gradient in PyTorch, by `padding_idx`.
TOKENS = np.random.default_rng(0).integers(1, 40, (2, 7), dtype=np.int32)
MASK = np.array([[1] * 7, [1] * 4 + [0] * 3], np.int32)


@pytest.fixture(scope="module")
def theirs():
    torch.manual_seed(0)
    config = transformers.BertConfig(**{key: text_model.CONFIG[key] for key in KEYS})
    model = transformers.BertModel(config, add_pooling_layer=False).eval()
    # LayerNorms start as 1 and 0, biases as 0: any two of them could be exchanged.
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) / 2)
    return model


@pytest.fixture(scope="module")
def ours(theirs, tmp_path_factory):
    """What `transformers` writes is read."""
    folder = tmp_path_factory.mktemp("saved")
    theirs.save_pretrained(folder)
    return bert.load(folder)


def test_both_ways(theirs, ours):
    module, variables = ours
    state_dict = theirs.state_dict()
    found = convert.to_state_dict(variables, bridge.TABLE)
    assert found.keys() == state_dict.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state_dict.items())
    tokens = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    expected = jax.eval_shape(module.init, jax.random.key(0), tokens, tokens)
    back = convert.from_state_dict(state_dict, bridge.TABLE, expected)
    jax.tree.map(np.testing.assert_array_equal, back, variables)


def close(found, expected, name):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * scale, err_msg=name)


def test_layers_and_gradients_in_float64(theirs, ours):
    module, variables = ours
    weight = np.random.default_rng(1).normal(size=(*TOKENS.shape, module.width)) * MASK[..., None]

    outputs = {}
    model = transformers.BertModel(theirs.config, add_pooling_layer=False).double().eval()
    model.load_state_dict(theirs.state_dict())
    for name, layer in model.named_modules():
        layer.register_forward_hook(
            lambda _, inputs, out, name=name: outputs.update(
                {name: out[0] if isinstance(out, tuple) else out}
            )
        )
    hidden = model(input_ids=torch.tensor(TOKENS).long(), attention_mask=torch.tensor(MASK).long())
    (hidden.last_hidden_state * torch.tensor(weight)).sum().backward()

    with jax.enable_x64(True):
        wide = module.clone(dtype=jnp.float64)

        def loss(variables):
            hidden, found = wide.apply(
                variables, TOKENS, MASK, mutable="intermediates", capture_intermediates=True
            )
            return (hidden * weight).sum(), found["intermediates"]

        variables = jax.tree.map(np.float64, variables)
        gradients, found = jax.jit(jax.grad(loss, has_aux=True))(variables)

    layers = {}
    for path, (value, *_) in traverse_util.flatten_dict(found, sep="/").items():
        for flax, name in bridge.LAYERS:
            path = path.removesuffix("/__call__")
            if other := convert.translate(path, flax, name):
                layers[path] = (np.asarray(value), outputs[other].detach().numpy())
    assert len(layers) == 1 + 2 * (len(bridge.LAYERS) - 1)
    for path, (value, other) in layers.items():
        close(value, other.reshape(value.shape), path)

    grads = {name: one.grad for name, one in model.named_parameters()}
    found = convert.to_state_dict(gradients, bridge.TABLE)
    assert found.keys() == grads.keys()
    for name, gradient in found.items():
        # A key's bias shifts all scores of a query alike, which a softmax does not see.
        if name.endswith("key.bias"):
            assert gradient.abs().max() < 1e-12
        else:
            close(gradient.numpy(), grads[name].numpy(), name)
            assert gradient.abs().max() > 1e-6
