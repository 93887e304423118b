#include "cpu/cpu_device.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "cpu/memory.h"
#include "cpu/panels.h"
#include "storage/storage.h"

namespace halfbyte::cpu {

std::shared_ptr<Device> make_device(const DeviceOptions& options);
std::shared_ptr<Device> make_device(const DeviceOptions& options) {
    return std::make_shared<CpuDevice>(options, choose_isa());
}

std::string CpuDevice::description() const {
    const char* precision = precision_ == Precision::high ? "high" : precision_ == Precision::fast ? "fast" : "float32";
    return concat("cpu ", isa_.name, ", ", pool_.threads(), pool_.threads() == 1 ? " thread, " : " threads, ", precision);
}

void CpuDevice::for_rows(int64_t rows, int64_t elements_per_row, FunctionRef<void(int64_t, int64_t)> f) {
    pool_.parallel_for(rows, std::max<int64_t>(1, kMinimumWork / std::max<int64_t>(1, elements_per_row)), f);
}

Buffer CpuDevice::allocate(size_t bytes) {
    Buffer buffer;
    buffer.owner = allocate_aligned(bytes);
    buffer.data = buffer.owner.get();
    buffer.bytes = bytes;
    return buffer;
}

void CpuDevice::copy_to_device(void* device, const void* host, size_t bytes) {
    if (bytes > 0) std::memcpy(device, host, bytes);
}

void CpuDevice::copy_to_host(void* host, const void* device, size_t bytes) {
    if (bytes > 0) std::memcpy(host, device, bytes);
}

Weight CpuDevice::upload(const Weight& weight, WeightUse use) {
    expect(bool(weight), "upload: the weight is empty");
    const bool floating = weight.storage->kind() == StorageKind::floating;
    if (precision_ == Precision::float32 || (floating && use == WeightUse::few_rows)) return weight;
    return make_panels(weight, isa_, pool_, weights_).value_or(weight);
}

Weight CpuDevice::arranged(const Weight& weight) {
    if (weight.storage != &nf4_storage() && weight.storage != &fp4_storage()) return weight;
    const std::optional<Weight> panels = make_panels(weight, isa_, pool_, weights_);
    return panels ? panels_for_file(*panels) : weight;
}

Weight CpuDevice::download(const Weight& uploaded) { return is_panels(uploaded) ? restore(uploaded) : uploaded; }

Weight CpuDevice::readable(const Weight& uploaded) {
    return can_restore(uploaded) ? restore(uploaded) : uploaded;  // panels are decodable themselves
}

void CpuDevice::embed(const Weight& table, std::span<const int32_t> ids, Tensor out, bool accumulate) {
    expect(int64_t(ids.size()) == out.rows && table.cols == out.cols, "embed: ", ids.size(), " ids of a table with ",
           table.cols, " columns into [", out.rows, ", ", out.cols, "]");
    for (const int32_t id : ids)
        expect(id >= 0 && id < table.rows, "embed: id ", id, " of a table with ", table.rows, " rows");
    for_rows(out.rows, 4 * out.cols, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) {
            if (!accumulate) {
                table.storage->decode_row(table, ids[size_t(r)], out.row(r));
                continue;
            }
            auto* row = static_cast<float*>(scratch(Scratch::decoded, size_t(out.cols) * sizeof(float)));
            table.storage->decode_row(table, ids[size_t(r)], row);
            kernels_.add(out.row(r), row, out.cols);
        }
    });
}

void CpuDevice::layer_norm(const Tensor& x, const float* gamma, const float* beta, float eps, Tensor out) {
    expect_same_shape(x, out, "layer_norm");
    for_rows(x.rows, 2 * x.cols, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) kernels_.layer_norm(x.row(r), x.cols, gamma, beta, eps, out.row(r));
    });
}

void CpuDevice::rms_norm(const Tensor& x, const float* gamma, float eps, Tensor out) {
    expect_same_shape(x, out, "rms_norm");
    for_rows(x.rows, x.cols, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) kernels_.rms_norm(x.row(r), x.cols, gamma, eps, out.row(r));
    });
}

void CpuDevice::rope(Tensor x, int64_t head_dim, std::span<const int32_t> positions, std::span<const float> frequencies,
                     float magnitude, RopeStyle style) {
    const int64_t half = int64_t(frequencies.size());
    expect(head_dim > 0 && x.cols % head_dim == 0 && 2 * half <= head_dim && int64_t(positions.size()) == x.rows, "rope: [",
           x.rows, ", ", x.cols, "] with heads of ", head_dim, ", ", half, " frequencies and ", positions.size(),
           " positions");
    // Every layer asks for the same angles, twice: the last table is kept.
    struct Table {
        std::vector<int32_t> positions;
        std::vector<float> frequencies, values;  // values: [rows][cosines half | sines half]
        float magnitude = 0;
    };
    thread_local Table table;
    if (table.magnitude != magnitude || !std::ranges::equal(table.positions, positions) ||
        !std::ranges::equal(table.frequencies, frequencies)) {
        table.magnitude = NAN;  // in case an allocation below throws
        table.positions.assign(positions.begin(), positions.end());
        table.frequencies.assign(frequencies.begin(), frequencies.end());
        table.values.resize(size_t(x.rows * half * 2));
        float* const values = table.values.data();
        for_rows(x.rows, 64 * half, [&](int64_t first, int64_t last) {
            for (int64_t r = first; r < last; r++)
                for (int64_t i = 0; i < half; i++) {
                    // The angle is rounded to float32 as in the reference (transformers), its cosine is exact.
                    const float angle = float(positions[size_t(r)]) * frequencies[size_t(i)];
                    values[2 * r * half + i] = float(std::cos(double(angle)) * double(magnitude));
                    values[2 * r * half + half + i] = float(std::sin(double(angle)) * double(magnitude));
                }
        });
        table.magnitude = magnitude;
    }
    const float* const values = table.values.data();  // this thread's, whoever runs the rows
    const auto turn = style == RopeStyle::half ? kernels_.rope_half : kernels_.rope_interleaved;
    for_rows(x.rows, x.cols, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++)
            for (int64_t at = 0; at < x.cols; at += head_dim)
                turn(x.row(r) + at, values + 2 * r * half, values + 2 * r * half + half, half);
    });
}

void CpuDevice::activate(Activation activation, Tensor x) {
    const auto f = kernels_.activation->activate[size_t(activation)];
    for_rows(x.rows, 4 * x.cols, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) f(x.row(r), x.cols);
    });
}

void CpuDevice::gated_activation(Activation activation, Tensor gate, const Tensor& up) {
    expect_same_shape(gate, up, "gated_activation");
    const auto f = kernels_.activation->gate[size_t(activation)];
    for_rows(gate.rows, 4 * gate.cols, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) f(gate.row(r), up.row(r), gate.cols);
    });
}

void CpuDevice::add(Tensor x, const Tensor& y) {
    expect_same_shape(x, y, "add");
    for_rows(x.rows, x.cols, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++) kernels_.add(x.row(r), y.row(r), x.cols);
    });
}

void CpuDevice::scale_columns(Tensor x, const float* gain) {
    for_rows(x.rows, x.cols, [&](int64_t first, int64_t last) {
        for (int64_t r = first; r < last; r++)
            for (int64_t c = 0; c < x.cols; c++) x.row(r)[c] *= gain[c];
    });
}

void CpuDevice::scatter_columns(const Tensor& x, std::span<const int32_t> columns, Tensor y) {
    expect(int64_t(columns.size()) == x.cols && x.rows == y.rows, "scatter_columns: ", columns.size(), " columns from [",
           x.rows, ", ", x.cols, "] to [", y.rows, ", ", y.cols, "]");
    for (const int32_t column : columns)
        expect(column >= 0 && column < y.cols, "scatter_columns: column ", column, " of ", y.cols);
    for (int64_t r = 0; r < x.rows; r++)
        for (size_t j = 0; j < columns.size(); j++) y.row(r)[columns[j]] = x.row(r)[j];
}

void CpuDevice::gather_rows(const Tensor& x, std::span<const int32_t> rows, Tensor out) {
    expect(int64_t(rows.size()) == out.rows && x.cols == out.cols, "gather_rows: ", rows.size(), " rows of ", x.cols,
           " columns into [", out.rows, ", ", out.cols, "]");
    for (size_t i = 0; i < rows.size(); i++) {
        expect(rows[i] >= 0 && rows[i] < x.rows, "gather_rows: row ", rows[i], " of ", x.rows);
        std::memcpy(out.row(int64_t(i)), x.row(rows[i]), size_t(x.cols) * sizeof(float));
    }
}

void CpuDevice::pool(const Tensor& x, std::span<const Sequence> sequences, Pooling pooling, bool normalize, Tensor out) {
    expect(int64_t(sequences.size()) == out.rows && x.cols == out.cols, "pool: ", sequences.size(), " sequences of ", x.cols,
           " columns into [", out.rows, ", ", out.cols, "]");
    int64_t rows = 0;
    for (const Sequence& s : sequences) {
        expect(s.first_row >= 0 && s.first_row + s.rows <= x.rows, "pool: rows ", s.first_row, " to ", s.first_row + s.rows,
               " of ", x.rows);
        rows += s.rows;
    }
    const size_t bytes = size_t(x.cols) * sizeof(float);
    const auto pool_one = [&](const Sequence& s, float* row) {
        if (s.rows == 0) {
            std::memset(row, 0, bytes);
            return;
        }
        std::memcpy(row, x.row(pooling == Pooling::last ? s.first_row + s.rows - 1 : s.first_row), bytes);
        if (pooling == Pooling::mean || pooling == Pooling::max)
            for (int64_t r = 1; r < s.rows; r++)
                (pooling == Pooling::mean ? kernels_.add : kernels_.maximum)(row, x.row(s.first_row + r), x.cols);
        if (pooling == Pooling::mean) kernels_.scale(row, 1.0f / float(s.rows), x.cols);
        if (normalize) {
            const double norm = std::sqrt(kernels_.sum_of_squares(row, x.cols));
            kernels_.scale(row, float(1.0 / std::max(norm, 1e-12)), x.cols);
        }
    };
    for_rows(out.rows, out.rows == 0 ? 0 : rows * x.cols / out.rows, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; i++) pool_one(sequences[size_t(i)], out.row(i));
    });
}

}  // namespace halfbyte::cpu
