// The model that adapters are bound to: a Llama of one layer, its weights zeros.
#pragma once

#include "models/model.h"

namespace fuzz {

const halfbyte::Model& tiny_llama();

}  // namespace fuzz
