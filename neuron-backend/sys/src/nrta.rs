// Made from abi/ by `cargo xtask bindings --write`. Do not edit.
use super::bindings::*;

pub type nrta_seq_t = u64;
pub type nrta_xu_t = ::std::os::raw::c_uint;
pub struct Nrta {
    __library: ::libloading::Library,
    pub nrta_execute_schedule: Result<
        unsafe extern "C" fn(
            model: *mut nrt_model_t,
            input: *const nrt_tensor_set_t,
            output: *mut nrt_tensor_set_t,
            queue: ::std::os::raw::c_int,
            ret: *mut NRT_STATUS,
            req_sequence: *mut nrta_seq_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrta_is_completed: Result<
        unsafe extern "C" fn(seq: nrta_seq_t, is_completed: *mut bool) -> NRT_STATUS,
        ::libloading::Error,
    >,
    pub nrta_get_sequence: Result<
        unsafe extern "C" fn(
            lnc_idx: u32,
            xu: nrta_xu_t,
            queue: ::std::os::raw::c_int,
            seq: *mut nrta_seq_t,
        ) -> NRT_STATUS,
        ::libloading::Error,
    >,
}
pub const NRTA_XU_TENSOR_OP: nrta_xu_t = 0;
pub const NRTA_XU_COMPUTE: nrta_xu_t = 1;
pub const NRTA_XU_COLLECTIVES: nrta_xu_t = 2;
impl Nrta {
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
        let nrta_execute_schedule = unsafe { __library.get(b"nrta_execute_schedule\0") }
            .map(|sym| *sym);
        let nrta_is_completed = unsafe { __library.get(b"nrta_is_completed\0") }
            .map(|sym| *sym);
        let nrta_get_sequence = unsafe { __library.get(b"nrta_get_sequence\0") }
            .map(|sym| *sym);
        Ok(Nrta {
            __library,
            nrta_execute_schedule,
            nrta_is_completed,
            nrta_get_sequence,
        })
    }
    pub unsafe fn nrta_execute_schedule(
        &self,
        model: *mut nrt_model_t,
        input: *const nrt_tensor_set_t,
        output: *mut nrt_tensor_set_t,
        queue: ::std::os::raw::c_int,
        ret: *mut NRT_STATUS,
        req_sequence: *mut nrta_seq_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrta_execute_schedule
                .as_ref()
                .expect(
                    "Expected function, got error.",
                ))(model, input, output, queue, ret, req_sequence)
        }
    }
    pub unsafe fn nrta_is_completed(
        &self,
        seq: nrta_seq_t,
        is_completed: *mut bool,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrta_is_completed
                .as_ref()
                .expect("Expected function, got error."))(seq, is_completed)
        }
    }
    pub unsafe fn nrta_get_sequence(
        &self,
        lnc_idx: u32,
        xu: nrta_xu_t,
        queue: ::std::os::raw::c_int,
        seq: *mut nrta_seq_t,
    ) -> NRT_STATUS {
        unsafe {
            (self
                .nrta_get_sequence
                .as_ref()
                .expect("Expected function, got error."))(lnc_idx, xu, queue, seq)
        }
    }
}
