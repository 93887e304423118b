#include "io/ggml_types.h"

namespace halfbyte {

namespace {

template <auto kStorage>
const Storage* of() {
    return &kStorage();
}
template <DType kType>
const Storage* floats() {
    return &float_storage(kType);
}

// gguf/constants.py: GGMLQuantizationType and GGML_QUANT_SIZES.
constexpr GgmlType kTypes[] = {
    {0, "F32", 1, 4, floats<DType::f32>},
    {1, "F16", 1, 2, floats<DType::f16>},
    {2, "Q4_0", 32, 18, of<q4_0_storage>},
    {3, "Q4_1", 32, 20, of<q4_1_storage>},
    {6, "Q5_0", 32, 22, of<q5_0_storage>},
    {7, "Q5_1", 32, 24, of<q5_1_storage>},
    {8, "Q8_0", 32, 34, of<q8_0_storage>},
    {9, "Q8_1", 32, 40},
    {10, "Q2_K", 256, 84, of<q2_k_storage>},
    {11, "Q3_K", 256, 110, of<q3_k_storage>},
    {12, "Q4_K", 256, 144, of<q4_k_storage>},
    {13, "Q5_K", 256, 176, of<q5_k_storage>},
    {14, "Q6_K", 256, 210, of<q6_k_storage>},
    {15, "Q8_K", 256, 292},
    {16, "IQ2_XXS", 256, 66, of<iq2_xxs_storage>},
    {17, "IQ2_XS", 256, 74, of<iq2_xs_storage>},
    {18, "IQ3_XXS", 256, 98, of<iq3_xxs_storage>},
    {19, "IQ1_S", 256, 50, of<iq1_s_storage>},
    {20, "IQ4_NL", 32, 18, of<iq4_nl_storage>},
    {21, "IQ3_S", 256, 110, of<iq3_s_storage>},
    {22, "IQ2_S", 256, 82, of<iq2_s_storage>},
    {23, "IQ4_XS", 256, 136, of<iq4_xs_storage>},
    {24, "I8", 1, 1},
    {25, "I16", 1, 2},
    {26, "I32", 1, 4},
    {27, "I64", 1, 8},
    {28, "F64", 1, 8, of<f64_storage>},
    {29, "IQ1_M", 256, 56, of<iq1_m_storage>},
    {30, "BF16", 1, 2, floats<DType::bf16>},
    {34, "TQ1_0", 256, 54, of<tq1_0_storage>},
    {35, "TQ2_0", 256, 66, of<tq2_0_storage>},
    {39, "MXFP4", 32, 17, of<mxfp4_storage>},
    {40, "NVFP4", 64, 36, of<nvfp4_storage>},
    {41, "Q1_0", 128, 18},
};

}  // namespace

std::span<const GgmlType> ggml_types() { return kTypes; }

const GgmlType* find_ggml_type(uint32_t number) {
    for (const GgmlType& type : kTypes)
        if (type.number == number) return &type;
    return nullptr;
}

}  // namespace halfbyte
