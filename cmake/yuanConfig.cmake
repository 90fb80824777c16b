# find_package(yuan) after `cargo cinstall`: the targets yuan::yuan (shared) and yuan::static.
# Lies in PREFIX/share/yuan/cmake; header and libraries are found from there.

get_filename_component(_yuan_prefix "${CMAKE_CURRENT_LIST_DIR}/../../.." ABSOLUTE)

find_path(YUAN_INCLUDE_DIR yuan.h HINTS "${_yuan_prefix}/include" NO_DEFAULT_PATH)
find_library(YUAN_LIBRARY NAMES yuan HINTS "${_yuan_prefix}" PATH_SUFFIXES lib lib64 "lib/${CMAKE_LIBRARY_ARCHITECTURE}" NO_DEFAULT_PATH)
find_library(YUAN_STATIC_LIBRARY NAMES libyuan.a HINTS "${_yuan_prefix}" PATH_SUFFIXES lib lib64 "lib/${CMAKE_LIBRARY_ARCHITECTURE}" NO_DEFAULT_PATH)
mark_as_advanced(YUAN_INCLUDE_DIR YUAN_LIBRARY YUAN_STATIC_LIBRARY)
set(yuan_FOUND TRUE)
if(NOT YUAN_INCLUDE_DIR OR NOT YUAN_LIBRARY)
    set(yuan_FOUND FALSE)
    set(yuan_NOT_FOUND_MESSAGE "yuan.h and libyuan are not in ${_yuan_prefix}, beside this file; install them again")
endif()

if(yuan_FOUND AND NOT TARGET yuan::yuan)
    add_library(yuan::yuan SHARED IMPORTED)
    set_target_properties(yuan::yuan PROPERTIES
        IMPORTED_LOCATION "${YUAN_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${YUAN_INCLUDE_DIR}")
endif()

if(yuan_FOUND AND YUAN_STATIC_LIBRARY AND NOT TARGET yuan::static)
    find_package(Threads REQUIRED)
    add_library(yuan::static STATIC IMPORTED)
    set_target_properties(yuan::static PROPERTIES
        IMPORTED_LOCATION "${YUAN_STATIC_LIBRARY}" INTERFACE_INCLUDE_DIRECTORIES "${YUAN_INCLUDE_DIR}"
        INTERFACE_LINK_LIBRARIES "Threads::Threads;${CMAKE_DL_LIBS};m")
endif()
