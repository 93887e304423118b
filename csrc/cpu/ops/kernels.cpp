// The table of this instruction set.
#include "cpu/ops/ops.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

struct Places {
    uint8_t at[kPanelRows * kGroupCols];
};
template <class Place>
constexpr Places make_places(Place place) {
    Places places{};
    for (int row = 0; row < kPanelRows; row++)
        for (int k = 0; k < kGroupCols; k++) places.at[row * kGroupCols + k] = uint8_t(place(row, k));
    return places;
}
constexpr Places kNibblePlaces = make_places([](int row, int k) { return nibble_place(row, k); });
constexpr Places kBytePlaces = make_places([](int row, int k) { return byte_place(row, k); });

}  // namespace

extern const Kernels kKernels;
const Kernels kKernels = {
    .nibble_place = kNibblePlaces.at,
    .byte_place = kBytePlaces.at,
#if HALFBYTE_QUADS
    .quad_order = kQuadOrder,
#else
    .quad_order = nullptr,
#endif
    .quantize_row = quantize_row,
    .quantize_row8 = quantize_row8,
    .quantize_residual = quantize_residual,
    .panel_linear = panel_linear,
    .float_dots = {float_dots_f32, float_dots_f16, float_dots_bf16},
    .float_gemm = {float_gemm_f32, float_gemm_f16, float_gemm_bf16},
    .lora_inner = {lora_inner_f32, lora_inner_f16, lora_inner_bf16},
    .lora_outer = {lora_outer_f32, lora_outer_f16, lora_outer_bf16},
    .attention = {attention_f32, attention_f16, attention_bf16, attention_i8},
    .merge_attention = merge_attention,
    .store_keys = {store_keys_f32, store_keys_f16, store_keys_bf16, store_keys_i8},
    .store_values = {store_values_f32, store_values_f16, store_values_bf16, store_values_i8},
    .layer_norm = layer_norm,
    .rms_norm = rms_norm,
    .activation = &kActivationKernels,
    .add = add_to,
    .add_scaled = add_scaled,
    .maximum = maximum,
    .scale = scale_by,
    .sum_of_squares = sum_of_squares,
    .rope_half = rope_half,
    .rope_interleaved = rope_interleaved,
};

}  // namespace halfbyte::cpu::HALFBYTE_ISA
