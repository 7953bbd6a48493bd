"""The cost model against the model itself."""

from hypothesis import given, settings
from hypothesis import strategies as st

from vit_search.spec.config import ModelConfig
from vit_search.spec.cost import cost_of
from vit_search.vit.model import ViT


@settings(deadline=None, max_examples=60)
@given(
    patch_size=st.sampled_from([2, 4]),
    dim=st.sampled_from([8, 12, 24]),
    depth=st.integers(1, 3),
    heads=st.sampled_from([1, 2, 4]),
    dim_head=st.sampled_from([None, 5]),
    mlp_ratio=st.sampled_from([0.5, 2, 4]),
    mlp_dim=st.sampled_from([None, 7]),
    norm=st.sampled_from(["pre", "post"]),
    pool=st.sampled_from(["mean", "cls"]),
    positions=st.sampled_from(["learned", "sincos2d"]),
    qkv_bias=st.booleans(),
    layer_scale=st.sampled_from([None, 0.1]),
    num_classes=st.sampled_from([0, 10]),
    in_channels=st.sampled_from([1, 3]),
)
def test_the_parameter_count_is_exact(**fields):
    config = ModelConfig(image_size=(8, 12), **fields)
    assert cost_of(config, 1).params == sum(p.numel() for p in ViT(config).parameters())


def test_kept_activations_grow_with_the_batch_and_the_square_of_the_patches():
    def kept_bytes(patch_size, batch_size):
        config = ModelConfig(image_size=(32, 32), in_channels=1, num_classes=0, patch_size=patch_size)
        return cost_of(config, batch_size).kept_bytes

    assert kept_bytes(4, 64) == 64 * kept_bytes(4, 1)
    pixels = 4 * 32 * 32  # the only part that does not grow with the number of patches
    assert kept_bytes(4, 1) - pixels == 4 * (kept_bytes(8, 1) - pixels)
