pub const ALLOCATOR: (&str, &str) = (
    "GLIBC_TUNABLES",
    "glibc.malloc.mmap_max=0:glibc.malloc.trim_threshold=0x7fffffffffffffff:glibc.malloc.hugetlb=1",
);
