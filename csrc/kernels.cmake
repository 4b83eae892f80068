# The kernels' sources, in FLYWEIGHT_KERNELS. Each instruction set is compiled for itself and
# chosen at run time (kernels.cpp). Products are never contracted to fused ones by the compiler:
# where they are fused the code says so, so that every build gives the same numbers.
set(kernels_dir ${CMAKE_CURRENT_LIST_DIR})
set(FLYWEIGHT_KERNELS
    ${kernels_dir}/kernels.cpp ${kernels_dir}/kernels_pack.cpp ${kernels_dir}/kernels_portable.cpp)
set_source_files_properties(${FLYWEIGHT_KERNELS} PROPERTIES
    COMPILE_OPTIONS "-O3;-ffp-contract=off;-Wno-psabi")
