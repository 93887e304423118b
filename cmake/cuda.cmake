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
set(HALFBYTE_CUDA_ARCHITECTURES "80;86;89;90;100;120" CACHE STRING "Compute capabilities that the plugin has machine code for")

if(HALFBYTE_CUDA_FOUND AND HALFBYTE_PYTHON)
  # nvcc is called by hand: CMake's own CUDA support wants a working GPU toolchain for the whole project, and this is one library.
  set(nvcc_flags -std=c++20 -O3 -compress-mode=size --threads 2 -Xcompiler=-fPIC,-fvisibility=hidden,-Wall -I${PROJECT_SOURCE_DIR}/csrc)
  foreach(architecture ${HALFBYTE_CUDA_ARCHITECTURES})
    list(APPEND nvcc_flags -gencode=arch=compute_${architecture},code=sm_${architecture})
  endforeach()
  # What has no machine code of its own compiles this when it is first used.
  list(GET HALFBYTE_CUDA_ARCHITECTURES 0 oldest)
  list(APPEND nvcc_flags -gencode=arch=compute_${oldest},code=compute_${oldest})
  file(GLOB plugin_sources CONFIGURE_DEPENDS csrc/cuda/kernels/*.cu)
  set(plugin_objects "")
  foreach(source ${plugin_sources})
    get_filename_component(name ${source} NAME_WE)
    set(object ${CMAKE_CURRENT_BINARY_DIR}/cuda/${name}.o)
    add_custom_command(OUTPUT ${object} DEPENDS ${source} DEPFILE ${object}.d VERBATIM
                       COMMAND ${CMAKE_COMMAND} -E make_directory ${CMAKE_CURRENT_BINARY_DIR}/cuda
                       COMMAND ${HALFBYTE_NVCC} ${nvcc_flags} -MD -MF ${object}.d -c -o ${object} ${source}
                       COMMENT "CUDA: ${name}.cu")
    list(APPEND plugin_objects ${object})
  endforeach()
  set(plugin ${CMAKE_CURRENT_BINARY_DIR}/libhalfbyte_cuda.so)
  add_custom_command(OUTPUT ${plugin} DEPENDS ${plugin_objects} VERBATIM
                     COMMAND ${HALFBYTE_NVCC} -shared -cudart static -arch=sm_${oldest} -Xlinker --exclude-libs=ALL -Xlinker -z,defs -Xlinker -s
                             -o ${plugin} ${plugin_objects}
                     COMMENT "CUDA: libhalfbyte_cuda.so")
  add_custom_target(halfbyte_cuda ALL DEPENDS ${plugin})
  install(FILES ${plugin} DESTINATION halfbyte)
endif()
