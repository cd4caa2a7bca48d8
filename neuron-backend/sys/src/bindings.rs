// Made from abi/ by `cargo xtask bindings --write`. Do not edit.

pub type NRT_STATUS = ::std::os::raw::c_uint;
pub type nrt_framework_type_t = ::std::os::raw::c_uint;
pub type nrt_tensor_placement_t = ::std::os::raw::c_uint;
pub type nrt_tensor_usage_t = ::std::os::raw::c_uint;
pub type nrt_dtype_t = ::std::os::raw::c_uint;
pub type _bindgen_ty_1 = ::std::os::raw::c_uint;
pub type _bindgen_ty_2 = ::std::os::raw::c_uint;
pub type nrt_model_t = nrt_model;
pub type nrt_tensor_t = nrt_tensor;
pub type nrt_tensor_set_t = ::std::os::raw::c_void;
pub type nrt_version_t = nrt_version;
pub type nrt_instance_info_t = nrt_instance_info;
pub type nrt_tensor_info_t = nrt_tensor_info;
pub type nrt_tensor_info_array_t = nrt_tensor_info_array;
pub type nrt_model_info_t = nrt_model_info;
pub type nrt_tensor_device_allocation_info_t = nrt_tensor_device_allocation_info;
pub type nrt_vnc_memory_stats_t = nrt_vnc_memory_stats;
#[repr(C)]
#[derive(Default)]
pub struct __IncompleteArrayField<T>(::std::marker::PhantomData<T>, [T; 0]);
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_model {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_tensor {
    _unused: [u8; 0],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_version {
    pub rt_major: u64,
    pub rt_minor: u64,
    pub rt_patch: u64,
    pub rt_maintenance: u64,
    pub rt_detail: [::std::os::raw::c_char; 128usize],
    pub git_hash: [::std::os::raw::c_char; 64usize],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_instance_info {
    pub family: u32,
    pub size: u32,
    pub arch_name: [::std::os::raw::c_char; 16usize],
    pub device_revision: [::std::os::raw::c_char; 8usize],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_tensor_info {
    pub name: [::std::os::raw::c_char; 256usize],
    pub usage: nrt_tensor_usage_t,
    pub size: usize,
    pub dtype: nrt_dtype_t,
    pub shape: *mut u32,
    pub ndim: u32,
}
#[repr(C)]
#[derive(Debug)]
pub struct nrt_tensor_info_array {
    pub tensor_count: u64,
    pub tensor_array: __IncompleteArrayField<nrt_tensor_info_t>,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_model_info {
    pub vnc: u32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_tensor_device_allocation_info {
    pub physical_address: u64,
    pub size: usize,
    pub hbm_index: ::std::os::raw::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct nrt_vnc_memory_stats {
    pub bytes_used: usize,
    pub bytes_limit: usize,
}
pub struct Nrt {
    __library: ::libloading::Library,
    pub nrt_init: Result<
        unsafe extern "C" fn(
            framework: nrt_framework_type_t,
            fw_version: *const ::std::os::raw::c_char,
            fal_version: *const ::std::os::raw::c_char,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_close: Result<unsafe extern "C" fn(), ::libloading::Error>,
    pub nrt_get_version: Result<
        unsafe extern "C" fn(ver: *mut nrt_version_t, size: usize) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_status_as_str: Result<
        unsafe extern "C" fn(status: NRT_STATUS) -> *const ::std::os::raw::c_char,
        ::libloading::Error,
    >,
    pub nrt_get_instance_info: Result<
        unsafe extern "C" fn(
            info: *mut nrt_instance_info_t,
            instance_info_len: usize,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_total_vnc_count: Result<
        unsafe extern "C" fn(vnc_count: *mut u32) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_visible_vnc_count: Result<
        unsafe extern "C" fn(vnc_count: *mut u32) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_total_nc_count: Result<
        unsafe extern "C" fn(nc_count: *mut u32) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_visible_nc_count: Result<
        unsafe extern "C" fn(nc_count: *mut u32) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_load: Result<
        unsafe extern "C" fn(
            neff_bytes: *const ::std::os::raw::c_void,
            size: usize,
            vnc: i32,
            vnc_count: i32,
            model: *mut *mut nrt_model_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_load_collectives: Result<
        unsafe extern "C" fn(
            neff_bytes: *const ::std::os::raw::c_void,
            size: usize,
            vnc: i32,
            vnc_count: i32,
            ctx_device_id: u32,
            ctx_device_count: u32,
            model: *mut *mut nrt_model_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_unload: Result<
        unsafe extern "C" fn(model: *mut nrt_model_t) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_model_info: Result<
        unsafe extern "C" fn(
            model: *const nrt_model_t,
            info: *mut nrt_model_info_t,
            info_size_in: usize,
            info_size_out: *mut usize,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_model_tensor_info: Result<
        unsafe extern "C" fn(
            model: *mut nrt_model_t,
            tensor_info: *mut *mut nrt_tensor_info_array_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_free_model_tensor_info: Result<
        unsafe extern "C" fn(tensor_info: *mut nrt_tensor_info_array_t) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_allocate_tensor_set: Result<
        unsafe extern "C" fn(result: *mut *mut nrt_tensor_set_t) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_destroy_tensor_set: Result<
        unsafe extern "C" fn(tensor_set: *mut *mut nrt_tensor_set_t),
        ::libloading::Error,
    >,
    pub nrt_add_tensor_to_tensor_set: Result<
        unsafe extern "C" fn(
            tensor_set: *mut nrt_tensor_set_t,
            tensor_name: *const ::std::os::raw::c_char,
            tensor: *mut nrt_tensor_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_tensor_from_tensor_set: Result<
        unsafe extern "C" fn(
            tensor_set: *mut nrt_tensor_set_t,
            tensor_name: *const ::std::os::raw::c_char,
            tensor: *mut *mut nrt_tensor_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_execute: Result<
        unsafe extern "C" fn(
            model: *mut nrt_model_t,
            input_set: *const nrt_tensor_set_t,
            output_set: *mut nrt_tensor_set_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_allocate: Result<
        unsafe extern "C" fn(
            tensor_placement: nrt_tensor_placement_t,
            vnc: ::std::os::raw::c_int,
            size: usize,
            name: *const ::std::os::raw::c_char,
            tensor: *mut *mut nrt_tensor_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_allocate_slice: Result<
        unsafe extern "C" fn(
            tensor_source: *const nrt_tensor_t,
            offset: usize,
            size: usize,
            name: *const ::std::os::raw::c_char,
            tensor_slice: *mut *mut nrt_tensor_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_free: Result<
        unsafe extern "C" fn(tensor: *mut *mut nrt_tensor_t),
        ::libloading::Error,
    >,
    pub nrt_tensor_read: Result<
        unsafe extern "C" fn(
            tensor: *const nrt_tensor_t,
            buf: *mut ::std::os::raw::c_void,
            offset: usize,
            size: usize,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_write: Result<
        unsafe extern "C" fn(
            tensor: *mut nrt_tensor_t,
            buf: *const ::std::os::raw::c_void,
            offset: usize,
            size: usize,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_copy: Result<
        unsafe extern "C" fn(
            src: *const nrt_tensor_t,
            src_offset: usize,
            dst: *mut nrt_tensor_t,
            dst_offset: usize,
            size: usize,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_memset: Result<
        unsafe extern "C" fn(
            tensor: *mut nrt_tensor_t,
            offset: u64,
            value: ::std::os::raw::c_int,
            size: usize,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_tensor_get_size: Result<
        unsafe extern "C" fn(tensor: *const nrt_tensor_t) -> usize,
        ::libloading::Error,
    >,
    pub nrt_tensor_get_device_allocation_info: Result<
        unsafe extern "C" fn(
            tensor: *const nrt_tensor_t,
            alloc_info: *mut nrt_tensor_device_allocation_info_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrt_get_vnc_memory_stats: Result<
        unsafe extern "C" fn(
            vnc: u32,
            stats: *mut nrt_vnc_memory_stats_t,
            stats_size_in: usize,
            stats_size_out: *mut usize,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
}
pub const NRT_SUCCESS: NRT_STATUS = 0;
pub const NRT_FAILURE: NRT_STATUS = 1;
pub const NRT_INVALID: NRT_STATUS = 2;
pub const NRT_INVALID_HANDLE: NRT_STATUS = 3;
pub const NRT_RESOURCE: NRT_STATUS = 4;
pub const NRT_TIMEOUT: NRT_STATUS = 5;
pub const NRT_HW_ERROR: NRT_STATUS = 6;
pub const NRT_QUEUE_FULL: NRT_STATUS = 7;
pub const NRT_LOAD_NOT_ENOUGH_NC: NRT_STATUS = 9;
pub const NRT_UNSUPPORTED_NEFF_VERSION: NRT_STATUS = 10;
pub const NRT_FAIL_HOST_MEM_ALLOC: NRT_STATUS = 11;
pub const NRT_UNINITIALIZED: NRT_STATUS = 13;
pub const NRT_CLOSED: NRT_STATUS = 14;
pub const NRT_QUEUE_EMPTY: NRT_STATUS = 15;
pub const NRT_EXEC_UNIT_UNRECOVERABLE: NRT_STATUS = 101;
pub const NRT_EXEC_BAD_INPUT: NRT_STATUS = 1002;
pub const NRT_EXEC_COMPLETED_WITH_NUM_ERR: NRT_STATUS = 1003;
pub const NRT_EXEC_COMPLETED_WITH_ERR: NRT_STATUS = 1004;
pub const NRT_EXEC_NC_BUSY: NRT_STATUS = 1005;
pub const NRT_EXEC_OOB: NRT_STATUS = 1006;
pub const NRT_COLL_PENDING: NRT_STATUS = 1100;
pub const NRT_EXEC_HW_ERR_COLLECTIVES: NRT_STATUS = 1200;
pub const NRT_EXEC_HW_ERR_HBM_UE: NRT_STATUS = 1201;
pub const NRT_EXEC_HW_ERR_NC_UE: NRT_STATUS = 1202;
pub const NRT_EXEC_HW_ERR_DMA_ABORT: NRT_STATUS = 1203;
pub const NRT_EXEC_SW_NQ_OVERFLOW: NRT_STATUS = 1204;
pub const NRT_EXEC_HW_ERR_REPAIRABLE_HBM_UE: NRT_STATUS = 1205;
pub const NRT_NETWORK_PROXY_FAILURE: NRT_STATUS = 1206;
pub const NRT_FRAMEWORK_TYPE_INVALID: nrt_framework_type_t = 0;
pub const NRT_FRAMEWORK_TYPE_NO_FW: nrt_framework_type_t = 1;
pub const NRT_FRAMEWORK_TYPE_TENSORFLOW: nrt_framework_type_t = 2;
pub const NRT_FRAMEWORK_TYPE_PYTORCH: nrt_framework_type_t = 3;
pub const NRT_FRAMEWORK_TYPE_MXNET: nrt_framework_type_t = 4;
pub const NRT_FRAMEWORK_TYPE_PRECHECK: nrt_framework_type_t = 5;
pub const NRT_TENSOR_PLACEMENT_DEVICE: nrt_tensor_placement_t = 0;
pub const NRT_TENSOR_PLACEMENT_HOST: nrt_tensor_placement_t = 1;
pub const NRT_TENSOR_USAGE_INPUT: nrt_tensor_usage_t = 0;
pub const NRT_TENSOR_USAGE_OUTPUT: nrt_tensor_usage_t = 1;
pub const NRT_DTYPE_UNKNOWN: nrt_dtype_t = 0;
pub const NRT_DTYPE_UINT64: nrt_dtype_t = 1;
pub const NRT_DTYPE_INT8: nrt_dtype_t = 2;
pub const NRT_DTYPE_UINT8: nrt_dtype_t = 3;
pub const NRT_DTYPE_INT16: nrt_dtype_t = 4;
pub const NRT_DTYPE_UINT16: nrt_dtype_t = 5;
pub const NRT_DTYPE_BFLOAT16: nrt_dtype_t = 6;
pub const NRT_DTYPE_FLOAT16: nrt_dtype_t = 7;
pub const NRT_DTYPE_INT32: nrt_dtype_t = 8;
pub const NRT_DTYPE_UINT32: nrt_dtype_t = 9;
pub const NRT_DTYPE_FLOAT32: nrt_dtype_t = 10;
pub const NRT_DTYPE_FP32R: nrt_dtype_t = 11;
pub const NRT_DTYPE_INT64: nrt_dtype_t = 12;
pub const NRT_DTYPE_FP8_E3: nrt_dtype_t = 13;
pub const NRT_DTYPE_FP8_E4: nrt_dtype_t = 14;
pub const NRT_DTYPE_FP8_E5: nrt_dtype_t = 15;
pub const NRT_INSTANCE_UNKNOWN: _bindgen_ty_1 = 0;
pub const NRT_INSTANCE_INF1: _bindgen_ty_1 = 1;
pub const NRT_INSTANCE_TRN1: _bindgen_ty_1 = 2;
pub const NRT_INSTANCE_TRN1N: _bindgen_ty_1 = 3;
pub const NRT_INSTANCE_INF2: _bindgen_ty_1 = 4;
pub const NRT_INSTANCE_TRN2: _bindgen_ty_1 = 5;
pub const NRT_INSTANCE_TRN2N: _bindgen_ty_1 = 6;
pub const NRT_INSTANCE_INF2E: _bindgen_ty_1 = 7;
pub const NRT_INSTANCE_TRN2P: _bindgen_ty_1 = 8;
pub const NRT_INSTANCE_TRN2U: _bindgen_ty_1 = 9;
pub const NRT_INSTANCE_TRN2E: _bindgen_ty_1 = 10;
pub const NRT_INSTANCE_TRN2EU: _bindgen_ty_1 = 11;
pub const NRT_INSTANCE_TRN2AC: _bindgen_ty_1 = 12;
pub const NRT_INSTANCE_TRN2UAC: _bindgen_ty_1 = 13;
pub const NRT_INSTANCE_TRN3: _bindgen_ty_1 = 14;
pub const NRT_INSTANCE_TRN3PDS98: _bindgen_ty_1 = 15;
pub const NRT_INSTANCE_SIZE_1XL: _bindgen_ty_2 = 0;
pub const NRT_INSTANCE_SIZE_2XL: _bindgen_ty_2 = 1;
pub const NRT_INSTANCE_SIZE_4XL: _bindgen_ty_2 = 2;
pub const NRT_INSTANCE_SIZE_6XL: _bindgen_ty_2 = 3;
pub const NRT_INSTANCE_SIZE_8XL: _bindgen_ty_2 = 4;
pub const NRT_INSTANCE_SIZE_24XL: _bindgen_ty_2 = 5;
pub const NRT_INSTANCE_SIZE_32XL: _bindgen_ty_2 = 6;
pub const NRT_INSTANCE_SIZE_48XL: _bindgen_ty_2 = 7;
pub const NRT_INSTANCE_SIZE_3XL: _bindgen_ty_2 = 8;
pub const NRT_INSTANCE_SIZE_UNKNOWN: _bindgen_ty_2 = 9;
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nrt_version"][::std::mem::size_of::<nrt_version>() - 224usize];
    ["Alignment of nrt_version"][::std::mem::align_of::<nrt_version>() - 8usize];
    [
        "Offset of field: nrt_version::rt_major",
    ][::std::mem::offset_of!(nrt_version, rt_major) - 0usize];
    [
        "Offset of field: nrt_version::rt_minor",
    ][::std::mem::offset_of!(nrt_version, rt_minor) - 8usize];
    [
        "Offset of field: nrt_version::rt_patch",
    ][::std::mem::offset_of!(nrt_version, rt_patch) - 16usize];
    [
        "Offset of field: nrt_version::rt_maintenance",
    ][::std::mem::offset_of!(nrt_version, rt_maintenance) - 24usize];
    [
        "Offset of field: nrt_version::rt_detail",
    ][::std::mem::offset_of!(nrt_version, rt_detail) - 32usize];
    [
        "Offset of field: nrt_version::git_hash",
    ][::std::mem::offset_of!(nrt_version, git_hash) - 160usize];
};
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nrt_instance_info"][::std::mem::size_of::<nrt_instance_info>() - 32usize];
    [
        "Alignment of nrt_instance_info",
    ][::std::mem::align_of::<nrt_instance_info>() - 4usize];
    [
        "Offset of field: nrt_instance_info::family",
    ][::std::mem::offset_of!(nrt_instance_info, family) - 0usize];
    [
        "Offset of field: nrt_instance_info::size",
    ][::std::mem::offset_of!(nrt_instance_info, size) - 4usize];
    [
        "Offset of field: nrt_instance_info::arch_name",
    ][::std::mem::offset_of!(nrt_instance_info, arch_name) - 8usize];
    [
        "Offset of field: nrt_instance_info::device_revision",
    ][::std::mem::offset_of!(nrt_instance_info, device_revision) - 24usize];
};
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nrt_tensor_info"][::std::mem::size_of::<nrt_tensor_info>() - 296usize];
    ["Alignment of nrt_tensor_info"][::std::mem::align_of::<nrt_tensor_info>() - 8usize];
    [
        "Offset of field: nrt_tensor_info::name",
    ][::std::mem::offset_of!(nrt_tensor_info, name) - 0usize];
    [
        "Offset of field: nrt_tensor_info::usage",
    ][::std::mem::offset_of!(nrt_tensor_info, usage) - 256usize];
    [
        "Offset of field: nrt_tensor_info::size",
    ][::std::mem::offset_of!(nrt_tensor_info, size) - 264usize];
    [
        "Offset of field: nrt_tensor_info::dtype",
    ][::std::mem::offset_of!(nrt_tensor_info, dtype) - 272usize];
    [
        "Offset of field: nrt_tensor_info::shape",
    ][::std::mem::offset_of!(nrt_tensor_info, shape) - 280usize];
    [
        "Offset of field: nrt_tensor_info::ndim",
    ][::std::mem::offset_of!(nrt_tensor_info, ndim) - 288usize];
};
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of nrt_tensor_info_array",
    ][::std::mem::size_of::<nrt_tensor_info_array>() - 8usize];
    [
        "Alignment of nrt_tensor_info_array",
    ][::std::mem::align_of::<nrt_tensor_info_array>() - 8usize];
    [
        "Offset of field: nrt_tensor_info_array::tensor_count",
    ][::std::mem::offset_of!(nrt_tensor_info_array, tensor_count) - 0usize];
    [
        "Offset of field: nrt_tensor_info_array::tensor_array",
    ][::std::mem::offset_of!(nrt_tensor_info_array, tensor_array) - 8usize];
};
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    ["Size of nrt_model_info"][::std::mem::size_of::<nrt_model_info>() - 4usize];
    ["Alignment of nrt_model_info"][::std::mem::align_of::<nrt_model_info>() - 4usize];
    [
        "Offset of field: nrt_model_info::vnc",
    ][::std::mem::offset_of!(nrt_model_info, vnc) - 0usize];
};
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of nrt_tensor_device_allocation_info",
    ][::std::mem::size_of::<nrt_tensor_device_allocation_info>() - 24usize];
    [
        "Alignment of nrt_tensor_device_allocation_info",
    ][::std::mem::align_of::<nrt_tensor_device_allocation_info>() - 8usize];
    [
        "Offset of field: nrt_tensor_device_allocation_info::physical_address",
    ][::std::mem::offset_of!(nrt_tensor_device_allocation_info, physical_address)
        - 0usize];
    [
        "Offset of field: nrt_tensor_device_allocation_info::size",
    ][::std::mem::offset_of!(nrt_tensor_device_allocation_info, size) - 8usize];
    [
        "Offset of field: nrt_tensor_device_allocation_info::hbm_index",
    ][::std::mem::offset_of!(nrt_tensor_device_allocation_info, hbm_index) - 16usize];
};
#[allow(clippy::unnecessary_operation, clippy::identity_op)]
const _: () = {
    [
        "Size of nrt_vnc_memory_stats",
    ][::std::mem::size_of::<nrt_vnc_memory_stats>() - 16usize];
    [
        "Alignment of nrt_vnc_memory_stats",
    ][::std::mem::align_of::<nrt_vnc_memory_stats>() - 8usize];
    [
        "Offset of field: nrt_vnc_memory_stats::bytes_used",
    ][::std::mem::offset_of!(nrt_vnc_memory_stats, bytes_used) - 0usize];
    [
        "Offset of field: nrt_vnc_memory_stats::bytes_limit",
    ][::std::mem::offset_of!(nrt_vnc_memory_stats, bytes_limit) - 8usize];
};
impl<T> __IncompleteArrayField<T> {
    #[inline]
    pub const fn new() -> Self {
        __IncompleteArrayField(::std::marker::PhantomData, [])
    }
    #[inline]
    pub fn as_ptr(&self) -> *const T {
        self as *const _ as *const T
    }
    #[inline]
    pub fn as_mut_ptr(&mut self) -> *mut T {
        self as *mut _ as *mut T
    }
    #[inline]
    pub unsafe fn as_slice(&self, len: usize) -> &[T] {
        unsafe { ::std::slice::from_raw_parts(self.as_ptr(), len) }
    }
    #[inline]
    pub unsafe fn as_mut_slice(&mut self, len: usize) -> &mut [T] {
        unsafe { ::std::slice::from_raw_parts_mut(self.as_mut_ptr(), len) }
    }
}
impl<T> ::std::fmt::Debug for __IncompleteArrayField<T> {
    fn fmt(&self, fmt: &mut ::std::fmt::Formatter<'_>) -> ::std::fmt::Result {
        fmt.write_str("__IncompleteArrayField")
    }
}
impl Nrt {
    pub unsafe fn new<P>(path: P) -> Result<Self, ::libloading::Error>
    where
        P: ::libloading::AsFilename,
    {
        let library = unsafe { ::libloading::Library::new(path) }?;
        unsafe { Self::from_library(library) }
    }
    pub unsafe fn from_library<L>(library: L) -> Result<Self, ::libloading::Error>
    where
        L: Into<::libloading::Library>,
    {
        let __library = library.into();
        let nrt_init = unsafe { __library.get(b"nrt_init\0") }.map(|sym| *sym);
        let nrt_close = unsafe { __library.get(b"nrt_close\0") }.map(|sym| *sym);
        let nrt_get_version = unsafe { __library.get(b"nrt_get_version\0") }
            .map(|sym| *sym);
        let nrt_get_status_as_str = unsafe { __library.get(b"nrt_get_status_as_str\0") }
            .map(|sym| *sym);
        let nrt_get_instance_info = unsafe { __library.get(b"nrt_get_instance_info\0") }
            .map(|sym| *sym);
        let nrt_get_total_vnc_count = unsafe {
            __library.get(b"nrt_get_total_vnc_count\0")
        }
            .map(|sym| *sym);
        let nrt_get_visible_vnc_count = unsafe {
            __library.get(b"nrt_get_visible_vnc_count\0")
        }
            .map(|sym| *sym);
        let nrt_get_total_nc_count = unsafe {
            __library.get(b"nrt_get_total_nc_count\0")
        }
            .map(|sym| *sym);
        let nrt_get_visible_nc_count = unsafe {
            __library.get(b"nrt_get_visible_nc_count\0")
        }
            .map(|sym| *sym);
        let nrt_load = unsafe { __library.get(b"nrt_load\0") }.map(|sym| *sym);
        let nrt_load_collectives = unsafe { __library.get(b"nrt_load_collectives\0") }
            .map(|sym| *sym);
        let nrt_unload = unsafe { __library.get(b"nrt_unload\0") }.map(|sym| *sym);
        let nrt_get_model_info = unsafe { __library.get(b"nrt_get_model_info\0") }
            .map(|sym| *sym);
        let nrt_get_model_tensor_info = unsafe {
            __library.get(b"nrt_get_model_tensor_info\0")
        }
            .map(|sym| *sym);
        let nrt_free_model_tensor_info = unsafe {
            __library.get(b"nrt_free_model_tensor_info\0")
        }
            .map(|sym| *sym);
        let nrt_allocate_tensor_set = unsafe {
            __library.get(b"nrt_allocate_tensor_set\0")
        }
            .map(|sym| *sym);
        let nrt_destroy_tensor_set = unsafe {
            __library.get(b"nrt_destroy_tensor_set\0")
        }
            .map(|sym| *sym);
        let nrt_add_tensor_to_tensor_set = unsafe {
            __library.get(b"nrt_add_tensor_to_tensor_set\0")
        }
            .map(|sym| *sym);
        let nrt_get_tensor_from_tensor_set = unsafe {
            __library.get(b"nrt_get_tensor_from_tensor_set\0")
        }
            .map(|sym| *sym);
        let nrt_execute = unsafe { __library.get(b"nrt_execute\0") }.map(|sym| *sym);
        let nrt_tensor_allocate = unsafe { __library.get(b"nrt_tensor_allocate\0") }
            .map(|sym| *sym);
        let nrt_tensor_allocate_slice = unsafe {
            __library.get(b"nrt_tensor_allocate_slice\0")
        }
            .map(|sym| *sym);
        let nrt_tensor_free = unsafe { __library.get(b"nrt_tensor_free\0") }
            .map(|sym| *sym);
        let nrt_tensor_read = unsafe { __library.get(b"nrt_tensor_read\0") }
            .map(|sym| *sym);
        let nrt_tensor_write = unsafe { __library.get(b"nrt_tensor_write\0") }
            .map(|sym| *sym);
        let nrt_tensor_copy = unsafe { __library.get(b"nrt_tensor_copy\0") }
            .map(|sym| *sym);
        let nrt_tensor_memset = unsafe { __library.get(b"nrt_tensor_memset\0") }
            .map(|sym| *sym);
        let nrt_tensor_get_size = unsafe { __library.get(b"nrt_tensor_get_size\0") }
            .map(|sym| *sym);
        let nrt_tensor_get_device_allocation_info = unsafe {
            __library.get(b"nrt_tensor_get_device_allocation_info\0")
        }
            .map(|sym| *sym);
        let nrt_get_vnc_memory_stats = unsafe {
            __library.get(b"nrt_get_vnc_memory_stats\0")
        }
            .map(|sym| *sym);
        Ok(Nrt {
            __library,
            nrt_init,
            nrt_close,
            nrt_get_version,
            nrt_get_status_as_str,
            nrt_get_instance_info,
            nrt_get_total_vnc_count,
            nrt_get_visible_vnc_count,
            nrt_get_total_nc_count,
            nrt_get_visible_nc_count,
            nrt_load,
            nrt_load_collectives,
            nrt_unload,
            nrt_get_model_info,
            nrt_get_model_tensor_info,
            nrt_free_model_tensor_info,
            nrt_allocate_tensor_set,
            nrt_destroy_tensor_set,
            nrt_add_tensor_to_tensor_set,
            nrt_get_tensor_from_tensor_set,
            nrt_execute,
            nrt_tensor_allocate,
            nrt_tensor_allocate_slice,
            nrt_tensor_free,
            nrt_tensor_read,
            nrt_tensor_write,
            nrt_tensor_copy,
            nrt_tensor_memset,
            nrt_tensor_get_size,
            nrt_tensor_get_device_allocation_info,
            nrt_get_vnc_memory_stats,
        })
    }
    pub unsafe fn nrt_init(
        &self,
        framework: nrt_framework_type_t,
        fw_version: *const ::std::os::raw::c_char,
        fal_version: *const ::std::os::raw::c_char,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_init
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(framework, fw_version, fal_version)
        }
    }
    pub unsafe fn nrt_close(&self) {
        unsafe { (self.nrt_close.as_ref().expect("Expected function, got error."))() }
    }
    pub unsafe fn nrt_get_version(
        &self,
        ver: *mut nrt_version_t,
        size: usize,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_version
                .as_ref()
                .expect("Expected function, got error."))(ver, size)
        }
    }
    pub unsafe fn nrt_get_status_as_str(
        &self,
        status: NRT_STATUS,
    ) -> *const ::std::os::raw::c_char {
        unsafe {
            (self
                .nrt_get_status_as_str
                .as_ref()
                .expect("Expected function, got error."))(status)
        }
    }
    pub unsafe fn nrt_get_instance_info(
        &self,
        info: *mut nrt_instance_info_t,
        instance_info_len: usize,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_instance_info
                .as_ref()
                .expect("Expected function, got error."))(info, instance_info_len)
        }
    }
    pub unsafe fn nrt_get_total_vnc_count(&self, vnc_count: *mut u32) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_total_vnc_count
                .as_ref()
                .expect("Expected function, got error."))(vnc_count)
        }
    }
    pub unsafe fn nrt_get_visible_vnc_count(&self, vnc_count: *mut u32) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_visible_vnc_count
                .as_ref()
                .expect("Expected function, got error."))(vnc_count)
        }
    }
    pub unsafe fn nrt_get_total_nc_count(&self, nc_count: *mut u32) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_total_nc_count
                .as_ref()
                .expect("Expected function, got error."))(nc_count)
        }
    }
    pub unsafe fn nrt_get_visible_nc_count(&self, nc_count: *mut u32) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_visible_nc_count
                .as_ref()
                .expect("Expected function, got error."))(nc_count)
        }
    }
    pub unsafe fn nrt_load(
        &self,
        neff_bytes: *const ::std::os::raw::c_void,
        size: usize,
        vnc: i32,
        vnc_count: i32,
        model: *mut *mut nrt_model_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_load
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(neff_bytes, size, vnc, vnc_count, model)
        }
    }
    pub unsafe fn nrt_load_collectives(
        &self,
        neff_bytes: *const ::std::os::raw::c_void,
        size: usize,
        vnc: i32,
        vnc_count: i32,
        ctx_device_id: u32,
        ctx_device_count: u32,
        model: *mut *mut nrt_model_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_load_collectives
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(
                neff_bytes,
                size,
                vnc,
                vnc_count,
                ctx_device_id,
                ctx_device_count,
                model,
            )
        }
    }
    pub unsafe fn nrt_unload(&self, model: *mut nrt_model_t) -> NRT_STATUS {
        unsafe {
            (self.nrt_unload.as_ref().expect("Expected function, got error."))(model)
        }
    }
    pub unsafe fn nrt_get_model_info(
        &self,
        model: *const nrt_model_t,
        info: *mut nrt_model_info_t,
        info_size_in: usize,
        info_size_out: *mut usize,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_model_info
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(model, info, info_size_in, info_size_out)
        }
    }
    pub unsafe fn nrt_get_model_tensor_info(
        &self,
        model: *mut nrt_model_t,
        tensor_info: *mut *mut nrt_tensor_info_array_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_model_tensor_info
                .as_ref()
                .expect("Expected function, got error."))(model, tensor_info)
        }
    }
    pub unsafe fn nrt_free_model_tensor_info(
        &self,
        tensor_info: *mut nrt_tensor_info_array_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_free_model_tensor_info
                .as_ref()
                .expect("Expected function, got error."))(tensor_info)
        }
    }
    pub unsafe fn nrt_allocate_tensor_set(
        &self,
        result: *mut *mut nrt_tensor_set_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_allocate_tensor_set
                .as_ref()
                .expect("Expected function, got error."))(result)
        }
    }
    pub unsafe fn nrt_destroy_tensor_set(&self, tensor_set: *mut *mut nrt_tensor_set_t) {
        unsafe {
            (self
                .nrt_destroy_tensor_set
                .as_ref()
                .expect("Expected function, got error."))(tensor_set)
        }
    }
    pub unsafe fn nrt_add_tensor_to_tensor_set(
        &self,
        tensor_set: *mut nrt_tensor_set_t,
        tensor_name: *const ::std::os::raw::c_char,
        tensor: *mut nrt_tensor_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_add_tensor_to_tensor_set
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(tensor_set, tensor_name, tensor)
        }
    }
    pub unsafe fn nrt_get_tensor_from_tensor_set(
        &self,
        tensor_set: *mut nrt_tensor_set_t,
        tensor_name: *const ::std::os::raw::c_char,
        tensor: *mut *mut nrt_tensor_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_tensor_from_tensor_set
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(tensor_set, tensor_name, tensor)
        }
    }
    pub unsafe fn nrt_execute(
        &self,
        model: *mut nrt_model_t,
        input_set: *const nrt_tensor_set_t,
        output_set: *mut nrt_tensor_set_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_execute
                .as_ref()
                .expect("Expected function, got error."))(model, input_set, output_set)
        }
    }
    pub unsafe fn nrt_tensor_allocate(
        &self,
        tensor_placement: nrt_tensor_placement_t,
        vnc: ::std::os::raw::c_int,
        size: usize,
        name: *const ::std::os::raw::c_char,
        tensor: *mut *mut nrt_tensor_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_allocate
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(tensor_placement, vnc, size, name, tensor)
        }
    }
    pub unsafe fn nrt_tensor_allocate_slice(
        &self,
        tensor_source: *const nrt_tensor_t,
        offset: usize,
        size: usize,
        name: *const ::std::os::raw::c_char,
        tensor_slice: *mut *mut nrt_tensor_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_allocate_slice
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(tensor_source, offset, size, name, tensor_slice)
        }
    }
    pub unsafe fn nrt_tensor_free(&self, tensor: *mut *mut nrt_tensor_t) {
        unsafe {
            (self
                .nrt_tensor_free
                .as_ref()
                .expect("Expected function, got error."))(tensor)
        }
    }
    pub unsafe fn nrt_tensor_read(
        &self,
        tensor: *const nrt_tensor_t,
        buf: *mut ::std::os::raw::c_void,
        offset: usize,
        size: usize,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_read
                .as_ref()
                .expect("Expected function, got error."))(tensor, buf, offset, size)
        }
    }
    pub unsafe fn nrt_tensor_write(
        &self,
        tensor: *mut nrt_tensor_t,
        buf: *const ::std::os::raw::c_void,
        offset: usize,
        size: usize,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_write
                .as_ref()
                .expect("Expected function, got error."))(tensor, buf, offset, size)
        }
    }
    pub unsafe fn nrt_tensor_copy(
        &self,
        src: *const nrt_tensor_t,
        src_offset: usize,
        dst: *mut nrt_tensor_t,
        dst_offset: usize,
        size: usize,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_copy
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(src, src_offset, dst, dst_offset, size)
        }
    }
    pub unsafe fn nrt_tensor_memset(
        &self,
        tensor: *mut nrt_tensor_t,
        offset: u64,
        value: ::std::os::raw::c_int,
        size: usize,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_memset
                .as_ref()
                .expect("Expected function, got error."))(tensor, offset, value, size)
        }
    }
    pub unsafe fn nrt_tensor_get_size(&self, tensor: *const nrt_tensor_t) -> usize {
        unsafe {
            (self
                .nrt_tensor_get_size
                .as_ref()
                .expect("Expected function, got error."))(tensor)
        }
    }
    pub unsafe fn nrt_tensor_get_device_allocation_info(
        &self,
        tensor: *const nrt_tensor_t,
        alloc_info: *mut nrt_tensor_device_allocation_info_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_tensor_get_device_allocation_info
                .as_ref()
                .expect("Expected function, got error."))(tensor, alloc_info)
        }
    }
    pub unsafe fn nrt_get_vnc_memory_stats(
        &self,
        vnc: u32,
        stats: *mut nrt_vnc_memory_stats_t,
        stats_size_in: usize,
        stats_size_out: *mut usize,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrt_get_vnc_memory_stats
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(vnc, stats, stats_size_in, stats_size_out)
        }
    }
}
