# The CUDA plugin. HALFBYTE_CUDA: AUTO builds it where nvcc is found, ON insists, OFF leaves it out.
# Sets HALFBYTE_CUDA_FOUND, and HALFBYTE_CUDA_INCLUDE, the toolkit's headers, for the emulation in tests/cuda.
set(HALFBYTE_CUDA AUTO CACHE STRING "Build the CUDA plugin: AUTO, ON or OFF")
set_property(CACHE HALFBYTE_CUDA PROPERTY STRINGS AUTO ON OFF)
set(HALFBYTE_CUDA_FOUND FALSE)
if(HALFBYTE_CUDA)
  find_program(HALFBYTE_NVCC nvcc HINTS $ENV{CUDA_HOME}/bin $ENV{CUDA_PATH}/bin /usr/local/cuda/bin)
  if(HALFBYTE_NVCC)
    # nvcc may be a script that calls the real one: it says itself where its headers are.
    execute_process(COMMAND ${HALFBYTE_NVCC} -E -x cu -arch=sm_80 --dryrun /dev/null ERROR_VARIABLE nvcc_plan OUTPUT_QUIET)
    string(REGEX MATCH "TOP=([^\r\n]*)" _ "${nvcc_plan}")
    get_filename_component(nvcc_top "${CMAKE_MATCH_1}" REALPATH)
    find_path(HALFBYTE_CUDA_INCLUDE cuda_runtime.h HINTS ${nvcc_top}/include ${nvcc_top}/targets/x86_64-linux/include
              /usr/local/cuda/include)
  endif()
  if(HALFBYTE_NVCC AND HALFBYTE_CUDA_INCLUDE)
    set(HALFBYTE_CUDA_FOUND TRUE)
  elseif(NOT HALFBYTE_CUDA STREQUAL "AUTO")
    message(FATAL_ERROR "HALFBYTE_CUDA is ${HALFBYTE_CUDA}, and there is no nvcc on PATH, in CUDA_HOME or in /usr/local/cuda. "
                        "Install the CUDA toolkit 13, or configure with -DHALFBYTE_CUDA=OFF.")
  endif()
endif()
