// The low-rank products of batches whose rows name different adapters, against double.
#include "cuda/kernels/launchers.h"
#include "harness.h"

namespace {

using namespace test;
using namespace halfbyte::cuda;

struct Matrix {
    std::vector<float> values;  // as they are once rounded to `element`
    std::vector<uint8_t> bytes;
};

Matrix matrix(Element element, size_t count, float scale) {
    Matrix out;
    out.values = normal(count, scale);
    const size_t size = element == Element::f32 ? 4 : 2;
    out.bytes.resize(count * size);
    for (size_t i = 0; i < count; i++) {
        const __half half = __float2half(out.values[i]);
        const __nv_bfloat16 bf16 = __float2bfloat16(out.values[i]);
        if (element == Element::f16) out.values[i] = __half2float(half);
        if (element == Element::bf16) out.values[i] = __bfloat162float(bf16);
        const void* from = element == Element::f32   ? static_cast<const void*>(&out.values[i])
                           : element == Element::f16 ? static_cast<const void*>(&half)
                                                     : &bf16;
        std::memcpy(out.bytes.data() + i * size, from, size);
    }
    return out;
}

struct Adapter {
    int rank;
    Element a_element, b_element;
    bool gain, shift, pivot_is_bias;
    bool displaced = false;  // both matrices begin 4 bytes behind where a vector could
};

/// `sets`: for each row the adapters it names, in order.
void adapt(const std::string& name, const std::vector<Adapter>& adapters, const std::vector<std::vector<int32_t>>& sets,
           int in, int out, bool has_bias, int gap) {
    const size_t rows = sets.size(), x_stride = size_t(in + gap), y_stride = size_t(out + gap);
    const std::vector<float> x = normal(rows * x_stride), y = normal(rows * y_stride), bias = normal(size_t(out));
    std::vector<Matrix> a, b;
    std::vector<std::vector<float>> gains, shifts;
    std::vector<std::unique_ptr<DeviceArray<uint8_t>>> a_device, b_device;
    std::vector<std::unique_ptr<DeviceArray<float>>> gain_device, shift_device;
    std::vector<AdapterEntry> entries;
    int max_rank = 0;
    for (size_t i = 0; i < adapters.size(); i++) {
        const Adapter& of = adapters[i];
        a.push_back(matrix(of.a_element, size_t(of.rank * in), 1 / std::sqrt(float(in))));
        b.push_back(matrix(of.b_element, size_t(of.rank * out), 1));
        const size_t skipped = of.displaced ? 4 : 0;
        for (Matrix* m : {&a.back(), &b.back()}) m->bytes.insert(m->bytes.begin(), skipped, uint8_t(0xff));
        gains.push_back(normal(size_t(out))), shifts.push_back(normal(size_t(out)));
        a_device.push_back(std::make_unique<DeviceArray<uint8_t>>(a.back().bytes));
        b_device.push_back(std::make_unique<DeviceArray<uint8_t>>(b.back().bytes));
        gain_device.push_back(std::make_unique<DeviceArray<float>>(gains.back()));
        shift_device.push_back(std::make_unique<DeviceArray<float>>(shifts.back()));
        AdapterEntry entry{};
        if (of.rank > 0) entry.a = a_device.back()->data + skipped, entry.b = b_device.back()->data + skipped;
        entry.a_element = of.a_element, entry.b_element = of.b_element;
        entry.rank = of.rank, entry.scale = 0.5f + float(i), entry.weight = of.gain ? 1.0f : 0.75f;
        if (of.gain) entry.gain = gain_device.back()->data;
        if (of.shift) entry.shift = shift_device.back()->data;
        entry.pivot_is_bias = of.pivot_is_bias;
        entries.push_back(entry);
        max_rank = std::max(max_rank, of.rank);
    }
    std::vector<int32_t> named, begin{0}, pairs, first, end;
    int32_t longest = 0;
    for (size_t r = 0; r < rows; r++) {
        if (sets[r].empty()) continue;
        const auto at = int32_t(named.size());
        if (named.empty() || sets[size_t(named.back())] != sets[r]) first.push_back(at), end.push_back(at);
        named.push_back(int32_t(r));
        pairs.insert(pairs.end(), sets[r].begin(), sets[r].end());
        begin.push_back(int32_t(pairs.size()));
        end.back() = at + 1;
        longest = std::max(longest, end.back() - first.back());
    }
    const DeviceArray<float> device_x(x), device_y(y), device_bias(bias),
        low(std::max<size_t>(1, pairs.size() * size_t(max_rank)));
    const DeviceArray<AdapterEntry> device_entries(entries);
    const DeviceArray<int32_t> device_rows(named), device_begin(begin), device_pairs(pairs), device_first(first),
        device_end(end);
    Adapt command{};
    command.x = device_x.data, command.x_stride = int64_t(x_stride);
    command.y = device_y.data, command.y_stride = int64_t(y_stride);
    command.bias = has_bias ? device_bias.data : nullptr;
    command.in = in, command.out = out;
    command.entries = device_entries.data, command.rows = device_rows.data, command.begin = device_begin.data;
    command.pair_entry = device_pairs.data;
    command.row_count = int32_t(named.size()), command.pair_count = int32_t(pairs.size()), command.max_rank = max_rank;
    command.low = low.data;
    command.segment_first = device_first.data, command.segment_end = device_end.data;
    command.segment_count = int32_t(first.size()), command.max_segment = longest;
    const cudaError_t error = run(command, nullptr);

    std::vector<Expected> want(y.size());
    for (size_t i = 0; i < y.size(); i++) want[i] = {y[i], 0};
    for (size_t r = 0; r < rows; r++)
        for (const int32_t e : sets[r]) {
            const AdapterEntry& entry = entries[size_t(e)];
            std::vector<double> sums(size_t(entry.rank)), sizes(size_t(entry.rank));
            for (int k = 0; k < entry.rank; k++)
                for (int c = 0; c < in; c++) {
                    const double term =
                        double(a[size_t(e)].values[size_t(k * in + c)]) * double(x[r * x_stride + size_t(c)]);
                    sums[size_t(k)] += term, sizes[size_t(k)] += std::abs(term);
                }
            for (int o = 0; o < out; o++) {
                Expected& at = want[r * y_stride + size_t(o)];
                double sum = 0, size = 0;
                for (int k = 0; k < entry.rank; k++) {
                    const double factor = double(b[size_t(e)].values[size_t(o * entry.rank + k)]) * entry.scale;
                    sum += factor * sums[size_t(k)], size += std::abs(factor) * sizes[size_t(k)];
                }
                // float32 sums of `in` products, then of `rank`, and a handful of roundings more; what was missed before is scaled.
                const double eps = 0x1p-24;
                at.allowed += size * eps * (in + entry.rank + 4) + std::abs(at.value + sum) * eps * 2;
                at.value += sum;
                if (entry.gain != nullptr) {
                    const double gain = gains[size_t(e)][size_t(o)],
                                 pivot = entry.pivot_is_bias && has_bias ? bias[size_t(o)] : 0.0f;
                    at.allowed = std::abs(gain) * (at.allowed + std::abs(at.value - pivot) * eps * 2);
                    at.value = pivot + gain * (at.value - pivot);
                    at.allowed += std::abs(at.value) * eps * 2;
                }
                if (entry.shift != nullptr) at.value += double(entry.weight) * shifts[size_t(e)][size_t(o)];
                at.allowed += std::abs(at.value) * eps * 2;
            }
        }
    check("adapt " + name, error, device_y.host(), want);
}

void cases() {
    const Element f32 = Element::f32, f16 = Element::f16, bf16 = Element::bf16;
    const std::vector<Adapter> some = {{16, bf16, bf16, false, false, false}, {3, f32, f16, false, true, false},
                                       {1, f16, f32, true, true, true},       {64, bf16, f32, true, false, false},
                                       {0, f32, f32, true, true, true},       {200, f32, f32, false, false, false}};
    adapt("one row", some, {{0}}, 64, 48, true, 0);
    adapt("one row, odd", some, {{3}}, 71, 33, true, 1);
    adapt("each its own", some, {{0}, {1}, {2}, {3}, {4}, {5}, {}}, 130, 129, true, 2);
    adapt("several of each", some, {{0, 1}, {0, 1}, {}, {1, 0, 3}, {4, 2}, {4, 2}, {2, 4}, {0}}, 96, 200, true, 3);
    adapt("no bias", some, {{2}, {2}, {4}, {3, 4}}, 40, 17, false, 0);
    adapt("gain and shift alone", {{0, f32, f32, true, true, false}}, {{0}, {}, {0}}, 32, 65, true, 0);
    std::vector<std::vector<int32_t>> many(70, {0});
    many.resize(75, {1, 2});
    adapt("a long run", some, many, 72, 40, true, 4);
    many.assign(260, {0});
    adapt("a prompt", some, many, 32, 20, false, 0);
    many.resize(297, {1, 3});  // the tiles of a prompt, a row of A too few, an odd rank
    adapt("a prompt and more", some, many, 140, 33, true, 4);
    many.assign(260, {0});
    adapt("a great rank", {{129, bf16, f16, false, false, false}}, many, 64, 70, false, 0);
    // Longer than what the warps of a block read in one round: one row, and tiles of two and four rows with some missing.
    for (const int rows : {1, 2, 3, 5, 17})
        many.assign(size_t(rows), {0, 2, 1}), adapt("wide, rows " + std::to_string(rows), some, many, 1160, 72, true, 8);
    adapt("one column", some, {{0}, {1, 3}, {5}}, 1, 1, true, 0);
    for (const Element element : {f32, f16, bf16})
        adapt("matrices that begin anywhere", {{36, element, element, true, false, true, true}}, {{0}, {}, {0}, {0}}, 128,
              65, true, 0);
    Adapt nothing{};
    report("no segments", run(nothing, nullptr) == cudaSuccess ? "" : "refused");
    nothing.row_count = -1;
    report("negative rows", run(nothing, nullptr) == cudaErrorInvalidValue ? "" : "accepted");
}

}  // namespace

int main(int argc, char** argv) { return test::run_all(argc, argv, cases); }
