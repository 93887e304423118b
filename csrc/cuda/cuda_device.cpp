#include "cuda/cuda_device.h"

#include <algorithm>

#include "cuda/plugin_loader.h"
#include "storage/storage.h"

namespace halfbyte::cuda {

std::vector<DeviceSummary> list_devices();
std::vector<DeviceSummary> list_devices() {
    std::string reason;
    const Plugin* const plugin = find_plugin(reason);
    char why[256] = "";
    const int count = plugin == nullptr ? 0 : plugin->device_count(why, sizeof why);
    if (count == 0) return {{"cuda", plugin == nullptr ? reason : std::string(why), false}};
    std::vector<DeviceSummary> devices;
    for (int i = 0; i < count; i++) {
        DeviceInfo info{};
        const std::string name = i == 0 ? "cuda" : concat("cuda:", i);
        if (plugin->device_info(i, &info) != 0)
            devices.push_back({name, plugin->last_error(), false});
        else
            devices.push_back({name, concat(info.name, " (sm_", info.compute_major, info.compute_minor, ")"), true,
                               info.total_bytes, info.free_bytes});
    }
    return devices;
}

std::shared_ptr<Device> make_device(int index, const DeviceOptions& options);
std::shared_ptr<Device> make_device(int index, const DeviceOptions& options) {
    const Plugin& plugin_here = plugin();
    char why[256] = "";
    const int count = plugin_here.device_count(why, sizeof why);
    if (count == 0) fail(ErrorCode::not_found, "device \"cuda\": ", why, "; use device=\"cpu\"");
    if (index >= count)
        fail(ErrorCode::not_found, "device \"cuda:", index, "\": this machine has ", count, count == 1 ? " GPU" : " GPUs",
             ", counted from 0");
    return std::make_shared<CudaDevice>(index, options);
}

static_assert(int(Activation::tanh) == int(halfbyte::Activation::tanh));
static_assert(int(Pooling::last) == int(halfbyte::Pooling::last));

CudaDevice::CudaDevice(int index, const DeviceOptions& options)
    : precision_(options.precision),
      pool_(options.threads),
      core_(std::make_shared<Core>(plugin(), index, options.memory_limit)) {}

std::string CudaDevice::description() const {
    const char* precision = precision_ == Precision::float32 ? "float32" : "high";
    const DeviceInfo& info = core_->info();
    return concat("cuda ", info.name, " (sm_", info.compute_major, info.compute_minor, "), ", precision);
}

uint64_t CudaDevice::replays() {
    const auto held = core_->lock();
    return core_->queue().graphs_launched();
}

Weight CudaDevice::upload(const Weight& weight, WeightUse) {
    expect(bool(weight), "upload: the weight is empty");
    return weights_.upload(core_, weight, pool_);
}

Weight CudaDevice::download(const Weight& uploaded) {
    return uploaded.storage == &tiles_storage() ? device_weight(uploaded).source : uploaded;
}

TiledWeight CudaDevice::here(const DeviceWeight& weight) {
    TiledWeight tiles = weight.tiles;
    if (weight.host_codes != nullptr) {
        void* const place = core_->passage(weight.code_bytes);
        core_->queue().push(Op::copy, Copy{place, weight.host_codes, weight.code_bytes, 1});
        tiles.codes = place;
    }
    return tiles;
}

void CudaDevice::embed(const Weight& table, std::span<const int32_t> ids, Tensor out, bool accumulate) {
    expect(int64_t(ids.size()) == out.rows && table.cols == out.cols, "embed: ", ids.size(), " ids of a table with ",
           table.cols, " columns into [", out.rows, ", ", out.cols, "]");
    for (const int32_t id : ids)
        expect(id >= 0 && id < table.rows, "embed: id ", id, " of a table with ", table.rows, " rows");
    if (ids.empty()) return;
    const DeviceWeight& weight = device_weight(table);
    const auto held = core_->lock();
    if (weight.host_codes != nullptr) {
        // A few rows of a table that stays in host memory: they are decoded there.
        std::vector<float> rows(ids.size() * size_t(out.cols));
        std::vector<int32_t> order(ids.size());
        for (size_t i = 0; i < ids.size(); i++) {
            weight.source.storage->decode_row(weight.source, ids[i], rows.data() + i * size_t(out.cols));
            order[i] = int32_t(i);
        }
        const float* const staged = core_->queue().stage(std::span<const float>(rows));
        if (accumulate)
            core_->queue().push(Op::add, Add{out.data, out.stride, staged, out.cols, int32_t(out.rows), int32_t(out.cols)});
        else
            core_->queue().push(Op::gather_rows,
                                GatherRows{staged, out.cols, core_->queue().stage(std::span<const int32_t>(order)), out.data,
                                           out.stride, int32_t(out.rows), int32_t(out.cols)});
        return;
    }
    core_->queue().push(Op::embed, Embed{weight.tiles, core_->queue().stage(ids), out.data, out.stride, int32_t(out.rows),
                                         int32_t(accumulate)});
}

TransformRows CudaDevice::rows_of(const Tensor& x) const {
    TransformRows command{};
    command.x = x.data, command.x_stride = x.stride;
    command.rows = int32_t(x.rows), command.cols = int32_t(x.cols);
    return command;
}

void CudaDevice::transform(const TransformRows& command) {
    if (command.rows == 0) return;
    const auto held = core_->lock();
    core_->queue().push(Op::transform_rows, command);
}

void CudaDevice::layer_norm(const Tensor& x, const float* gamma, const float* beta, float eps, Tensor out) {
    expect(x.rows == out.rows && x.cols == out.cols, "layer_norm: shapes differ");
    TransformRows command = rows_of(x);
    command.kind = Transform::layer_norm;
    command.gamma = gamma, command.beta = beta, command.eps = eps;
    command.out = out.data, command.out_stride = out.stride;
    transform(command);
}

void CudaDevice::rms_norm(const Tensor& x, const float* gamma, float eps, Tensor out) {
    expect(x.rows == out.rows && x.cols == out.cols, "rms_norm: shapes differ");
    TransformRows command = rows_of(x);
    command.kind = Transform::rms_norm;
    command.gamma = gamma, command.eps = eps;
    command.out = out.data, command.out_stride = out.stride;
    transform(command);
}

void CudaDevice::activate(halfbyte::Activation activation, Tensor x) {
    TransformRows command = rows_of(x);
    command.kind = Transform::activation, command.activation = Activation(activation);
    command.out = x.data, command.out_stride = x.stride;
    transform(command);
}

void CudaDevice::gated_activation(halfbyte::Activation activation, Tensor gate, const Tensor& up) {
    expect(gate.rows == up.rows && gate.cols == up.cols, "gated_activation: shapes differ");
    TransformRows command = rows_of(gate);
    command.kind = Transform::gated_activation, command.activation = Activation(activation);
    command.up = up.data, command.up_stride = up.stride;
    command.out = gate.data, command.out_stride = gate.stride;
    transform(command);
}

void CudaDevice::rope(Tensor x, int64_t head_dim, std::span<const int32_t> positions, std::span<const float> frequencies,
                      float magnitude, RopeStyle style) {
    const int64_t half = int64_t(frequencies.size());
    expect(head_dim > 0 && x.cols % head_dim == 0 && 2 * half <= head_dim && int64_t(positions.size()) == x.rows, "rope: [",
           x.rows, ", ", x.cols, "] with heads of ", head_dim, ", ", half, " frequencies and ", positions.size(),
           " positions");
    if (x.rows == 0 || half == 0) return;
    const auto held = core_->lock();
    Rope command{};
    command.x = x.data, command.x_stride = x.stride;
    command.rows = int32_t(x.rows), command.heads = int32_t(x.cols / head_dim);
    command.head_dim = int32_t(head_dim), command.half = int32_t(half);
    command.positions = core_->queue().stage(positions);
    command.frequencies = core_->queue().stage(frequencies);
    command.magnitude = magnitude, command.interleaved = style == RopeStyle::interleaved;
    core_->queue().push(Op::rope, command);
}

void CudaDevice::add(Tensor x, const Tensor& y) {
    expect(x.rows == y.rows && x.cols == y.cols, "add: shapes differ");
    if (x.rows == 0) return;
    const auto held = core_->lock();
    core_->queue().push(Op::add, Add{x.data, x.stride, y.data, y.stride, int32_t(x.rows), int32_t(x.cols)});
}

void CudaDevice::scale_columns(Tensor x, const float* gain) {
    if (x.rows == 0) return;
    const auto held = core_->lock();
    core_->queue().push(Op::scale_columns, ScaleColumns{x.data, x.stride, gain, int32_t(x.rows), int32_t(x.cols)});
}

void CudaDevice::scatter_columns(const Tensor& x, std::span<const int32_t> columns, Tensor y) {
    expect(int64_t(columns.size()) == x.cols && x.rows == y.rows, "scatter_columns: ", columns.size(), " columns from [",
           x.rows, ", ", x.cols, "] to [", y.rows, ", ", y.cols, "]");
    for (const int32_t column : columns)
        expect(column >= 0 && column < y.cols, "scatter_columns: column ", column, " of ", y.cols);
    if (x.rows == 0 || x.cols == 0) return;
    const auto held = core_->lock();
    core_->queue().push(Op::scatter_columns, ScatterColumns{x.data, x.stride, core_->queue().stage(columns), y.data,
                                                            y.stride, int32_t(x.rows), int32_t(x.cols)});
}

void CudaDevice::gather_rows(const Tensor& x, std::span<const int32_t> rows, Tensor out) {
    expect(int64_t(rows.size()) == out.rows && x.cols == out.cols, "gather_rows: ", rows.size(), " rows of ", x.cols,
           " columns into [", out.rows, ", ", out.cols, "]");
    for (const int32_t row : rows) expect(row >= 0 && row < x.rows, "gather_rows: row ", row, " of ", x.rows);
    if (rows.empty()) return;
    const auto held = core_->lock();
    core_->queue().push(Op::gather_rows, GatherRows{x.data, x.stride, core_->queue().stage(rows), out.data, out.stride,
                                                    int32_t(out.rows), int32_t(out.cols)});
}

void CudaDevice::pool(const Tensor& x, std::span<const Sequence> sequences, halfbyte::Pooling pooling, bool normalize,
                      Tensor out) {
    expect(int64_t(sequences.size()) == out.rows && x.cols == out.cols, "pool: ", sequences.size(), " sequences of ", x.cols,
           " columns into [", out.rows, ", ", out.cols, "]");
    if (sequences.empty()) return;
    std::vector<int32_t> first, count;
    for (const Sequence& s : sequences) {
        expect(s.first_row >= 0 && s.first_row + s.rows <= x.rows, "pool: rows ", s.first_row, " to ", s.first_row + s.rows,
               " of ", x.rows);
        first.push_back(int32_t(s.first_row));
        count.push_back(int32_t(s.rows));
    }
    const auto held = core_->lock();
    const int32_t* const staged_first = core_->queue().stage(std::span<const int32_t>(first));
    const int32_t* const staged_count = core_->queue().stage(std::span<const int32_t>(count));
    core_->queue().push(Op::pool, Pool{x.data, x.stride, staged_first, staged_count, out.data, out.stride,
                                       int32_t(sequences.size()), int32_t(x.cols), Pooling(pooling), int32_t(normalize)});
}

void CudaDevice::sample(const Tensor& logits, std::span<const Draw> draws, std::span<int32_t> tokens) {
    expect(int64_t(draws.size()) == logits.rows && tokens.size() == draws.size(), "sample: ", draws.size(), " draws for ",
           logits.rows, " rows");
    if (draws.empty()) return;
    std::vector<SampleRow> rows;
    for (const Draw& draw : draws) rows.push_back({draw.temperature, draw.top_k, draw.top_p, draw.min_p, draw.uniform});
    const size_t token_bytes = (tokens.size_bytes() + 255) / 256 * 256;
    const auto held = core_->lock();
    auto* const scratch = static_cast<char*>(
        core_->scratch(token_bytes + plugin().sample_scratch_bytes(int32_t(draws.size()), int32_t(logits.cols))));
    Sample command{};
    command.logits = logits.data, command.logits_stride = logits.stride;
    command.rows = core_->queue().stage(std::span<const SampleRow>(rows));
    command.count = int32_t(draws.size()), command.vocab = int32_t(logits.cols);
    command.tokens = reinterpret_cast<int32_t*>(scratch);
    command.scratch = scratch + token_bytes;
    core_->queue().push(Op::sample, command);
    core_->read(tokens.data(), scratch, tokens.size_bytes());
}

}  // namespace halfbyte::cuda
