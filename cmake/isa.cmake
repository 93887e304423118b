# Every folder csrc/cpu/isa/<name>/ is one instruction set. Its isa.cmake sets
#   HALFBYTE_ISA_PROCESSORS  regex of CMAKE_SYSTEM_PROCESSOR on which the folder is built
#   HALFBYTE_ISA_FLAGS       compiler flags
#   HALFBYTE_ISA_RANK        the highest supported rank wins; negative: never chosen but by HALFBYTE_ISA
# and its supported.cpp (compiled without those flags) says whether this machine can run it. Each csrc/cpu/ops/*.cpp is compiled
# once per folder in namespace halfbyte::cpu::<name>, with the folder first on the include path for "simd.h". Two sets that differ
# in a few instructions share one simd.h: the compiler's own macros for their flags say which products it has.
file(GLOB HALFBYTE_ISA_FILES CONFIGURE_DEPENDS csrc/cpu/isa/*/isa.cmake)
option(HALFBYTE_EMULATED_ISA "Also build stand-ins for AVX-512 and AVX-VNNI, for tests on machines without them" OFF)
if(HALFBYTE_EMULATED_ISA)
  file(GLOB emulated CONFIGURE_DEPENDS tests/kernels/emulation/*/isa.cmake)
  list(APPEND HALFBYTE_ISA_FILES ${emulated})
endif()
file(GLOB HALFBYTE_OP_SOURCES CONFIGURE_DEPENDS csrc/cpu/ops/*.cpp)
set(HALFBYTE_ISA_DECLARATIONS "")
set(HALFBYTE_ISA_ENTRIES "")
foreach(file ${HALFBYTE_ISA_FILES})
  get_filename_component(folder ${file} DIRECTORY)
  get_filename_component(isa ${folder} NAME)
  include(${file})
  if(CMAKE_SYSTEM_PROCESSOR MATCHES "${HALFBYTE_ISA_PROCESSORS}")
    file(GLOB overrides CONFIGURE_DEPENDS ${folder}/*.cpp)
    list(REMOVE_ITEM overrides ${folder}/supported.cpp)
    add_library(halfbyte_cpu_${isa} OBJECT ${HALFBYTE_OP_SOURCES} ${overrides})
    target_include_directories(halfbyte_cpu_${isa} PRIVATE ${folder} csrc)
    target_compile_definitions(halfbyte_cpu_${isa} PRIVATE HALFBYTE_ISA=${isa} HALFBYTE_ISA_NAME="${isa}")
    target_compile_options(halfbyte_cpu_${isa} PRIVATE ${HALFBYTE_ISA_FLAGS})
    target_link_libraries(halfbyte_cpu_${isa} PRIVATE halfbyte_flags)
    target_sources(halfbyte_core PRIVATE $<TARGET_OBJECTS:halfbyte_cpu_${isa}> ${folder}/supported.cpp)
    string(APPEND HALFBYTE_ISA_DECLARATIONS
           "namespace ${isa} {\nextern const Kernels kKernels;\nbool supported();\n}\n")
    string(APPEND HALFBYTE_ISA_ENTRIES "    {\"${isa}\", ${HALFBYTE_ISA_RANK}, &${isa}::supported, &${isa}::kKernels},\n")
  endif()
endforeach()
configure_file(cmake/isa_list.cpp.in ${CMAKE_BINARY_DIR}/generated/isa_list.cpp @ONLY)
target_sources(halfbyte_core PRIVATE ${CMAKE_BINARY_DIR}/generated/isa_list.cpp)
