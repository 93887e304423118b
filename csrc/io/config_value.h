// The document behind a Config. Private to io/.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "io/config.h"

namespace halfbyte {

struct Config::Value {
    /// config.json whole; or the metadata of a GGUF file below "<architecture>.", without that prefix.
    nlohmann::json fields = nlohmann::json::object();
    std::string gguf_architecture;  ///< general.architecture; unused for config.json
};

}  // namespace halfbyte
