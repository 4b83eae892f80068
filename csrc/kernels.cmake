# The kernels' sources, in FLYWEIGHT_KERNELS. Each instruction set is compiled for itself and chosen
# at run time (kernels.cpp). The compiler never fuses a product and a sum by itself: where they are
# fused the code says so, so that every build gives the same numbers.
set(kernels_dir ${CMAKE_CURRENT_LIST_DIR})
set(kernels_options ${optimise} -ffp-contract=off -Wno-psabi -Wno-unused-function)

function(flyweight_kernels file)
    set_source_files_properties(
        ${kernels_dir}/${file} PROPERTIES COMPILE_OPTIONS "${kernels_options};${ARGN}")
    set(FLYWEIGHT_KERNELS ${FLYWEIGHT_KERNELS} ${kernels_dir}/${file} PARENT_SCOPE)
endfunction()

flyweight_kernels(kernels.cpp)
flyweight_kernels(kernels_pack.cpp)
flyweight_kernels(kernels_portable.cpp)
flyweight_kernels(kernels_peak.cpp)
if(CMAKE_SYSTEM_PROCESSOR MATCHES "^(x86_64|amd64|AMD64)$")
    set(avx2 -mavx2 -mfma -mf16c)
    set(avx512vnni ${avx2} -mavx512f -mavx512bw -mavx512dq -mavx512vl -mavx512vnni
        -mprefer-vector-width=512 -Wno-uninitialized -Wno-maybe-uninitialized)
    set(avx512 ${avx512vnni} -mavx512bf16)
    flyweight_kernels(kernels_avx2.cpp ${avx2})
    flyweight_kernels(kernels_avx2vnni.cpp ${avx2} -mavxvnni)
    flyweight_kernels(kernels_avx512vnni.cpp ${avx512vnni})
    flyweight_kernels(kernels_avx512.cpp ${avx512})
    flyweight_kernels(kernels_amx.cpp ${avx512} -mamx-tile -mamx-int8 -mamx-bf16)
    set_property(SOURCE ${kernels_dir}/kernels.cpp ${kernels_dir}/kernels_peak.cpp APPEND PROPERTY
        COMPILE_DEFINITIONS FLYWEIGHT_X86)
endif()
