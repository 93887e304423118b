// Scales and offsets of a panel as float32, a few blocks at a time, whatever the form they are stored in.
#pragma once

#include "cpu/ops/ops.h"

namespace halfbyte::cpu::HALFBYTE_ISA {
namespace {

constexpr int kPieceBlocks = kPieceCols / 32;

/// The scales (and offsets) of consecutive blocks of one panel. Blocks must be asked for in ascending order.
class PanelScales {
public:
    /// next: panels from this one to that which the same thread takes after it; its scales are prefetched.
    void begin(const Panels& w, int64_t panel, int64_t next) {
        w_ = &w, panel_ = panel;
        blocks_ = w.cols / w.block / w.scale_repeat, at_ = panel * blocks_ * kPanelRows;
        ahead_ = next * blocks_ * kPanelRows;
        crossing_ = 0;
        for (int64_t i = 0; i < kPanelRows; i += kF) store(offset_ + i, set(w.nested_offset));
        scales_ = offsets_ = nullptr;
    }

    /// Blocks [first, last) of the kernel, at most kPieceBlocks: scales()[(b - first) * 16 + row], offsets() likewise or null.
    void decode(int64_t first, int64_t last) {
        const int64_t size = w_->scale_form == ScaleForm::f32 ? 4 : w_->scale_form == ScaleForm::f16 ? 2 : 1;
        const int64_t from = at_ + ahead_ + first / w_->scale_repeat * kPanelRows,
                      bytes = (last - first) * kPanelRows * size;
        for (int64_t i = 0; i < bytes; i += 64) {
            prefetch(static_cast<const uint8_t*>(w_->scales) + from * size + i);
            if (w_->offsets != nullptr) prefetch(static_cast<const uint8_t*>(w_->offsets) + from * size + i);
        }
        if (w_->scale_form == ScaleForm::f32 && w_->scale_repeat == 1) {
            scales_ = static_cast<const float*>(w_->scales) + at_ + first * kPanelRows;
            if (w_->offsets != nullptr) offsets_ = static_cast<const float*>(w_->offsets) + at_ + first * kPanelRows;
            return;
        }
        if (w_->scale_form == ScaleForm::nested)
            load_nested(first, last);
        else
            convert(w_->scales, first, last, scale_memory_);
        scales_ = scale_memory_;
        if (w_->offsets == nullptr) return;
        convert(w_->offsets, first, last, offset_memory_);
        offsets_ = offset_memory_;
    }
    const float* scales() const { return scales_; }
    const float* offsets() const { return offsets_; }

private:
    void convert(const void* from, int64_t first, int64_t last, float* to) const {
        for (int64_t b = first; b < last; b++, to += kPanelRows) {
            const int64_t at = at_ + (w_->scale_repeat == 1 ? b : b / w_->scale_repeat) * kPanelRows;
            store16(to, w_->scale_form == ScaleForm::f16 ? load16_f16(static_cast<const uint16_t*>(from) + at)
                                                         : load16(static_cast<const float*>(from) + at));
        }
    }

    /// scale = map[code] * nested[block of the row-major weight >> shift] + offset, as bitsandbytes decodes it. The lanes of a
    /// panel are rows: each passes from one second-level block to the next at a place of its own.
    void load_nested(int64_t first, int64_t last) {
        const auto* codes = static_cast<const uint8_t*>(w_->scales) + at_;
        const F16 offset = load16(offset_);
        float* to = scale_memory_;
        const int64_t repeat = w_->scale_repeat;
        for (int64_t own = first / repeat; own * repeat < last; own++) {
            if (own >= crossing_) find_nested(own);
            const F16 scale = fma(lookup_scales(codes + own * kPanelRows, *w_->nested_map), load16(nested_), offset);
            const int64_t end = min_of((own + 1) * repeat, last);
            for (int64_t b = max_of(own * repeat, first); b < end; b++, to += kPanelRows) store16(to, scale);
        }
    }
    // Rows that follow each other share a second-level block until one of them passes into the next. Whole vectors are
    // stored, since whole vectors are loaded soon after.
    void find_nested(int64_t own) {
        const Panels& w = *w_;
        const int64_t first_row = panel_ * kPanelRows, lanes = min_of(kPanelRows, w.rows - first_row);
        const int64_t size = int64_t(1) << w.nested_shift, first = first_row * blocks_ + own;
        crossing_ = blocks_;
        for (int64_t lane = 0; lane < lanes;) {
            const int64_t begin = lane, nested = (first + lane * blocks_) >> w.nested_shift;
            do lane++;
            while (lane < lanes && (first + lane * blocks_) >> w.nested_shift == nested);
            const int64_t last = first + (lane - 1) * blocks_;  // of these lanes, the nearest to its end
            crossing_ = min_of(crossing_, own + size - (last & (size - 1)));
            const F value = set(w.nested[nested] * nested_unit(*w.nested_map));
            for (int64_t i = 0; i < kPanelRows; i += kF)
                store(nested_ + i,
                      begin == 0 ? value : select_less(load(kLanes + i), set(float(begin)), load(nested_ + i), value));
        }
    }

    alignas(64) static constexpr float kLanes[kPanelRows] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    const Panels* w_;
    int64_t blocks_, at_, panel_;  // blocks_: of the source in a row; at_: the panel's first scale
    int64_t ahead_;                // scales from those of this panel to those of the next
    int64_t crossing_;             // first own block at which a lane passes on
    const float* scales_;
    const float* offsets_;
    alignas(64) float nested_[kPanelRows];
    alignas(64) float offset_[kPanelRows];
    alignas(64) float scale_memory_[kPieceBlocks * kPanelRows];
    alignas(64) float offset_memory_[kPieceBlocks * kPanelRows];
};

}  // namespace
}  // namespace halfbyte::cpu::HALFBYTE_ISA
