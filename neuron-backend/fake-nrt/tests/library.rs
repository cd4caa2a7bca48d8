//! The shared library through the dynamic loader, as the appliance opens it. The environment is a
//! process', so each case runs in a process of its own: the test starts this binary again.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]
#![expect(unsafe_code, reason = "calls C")]

use std::ffi::{CStr, c_void};
use std::path::PathBuf;
use std::process::{Command, Output};
use std::ptr;

use neuron_sys as sys;
use neuron_sys::Library;
use nrt::neff::Neff;
use nrt::sample;

/// The built library, beside this test binary (`target/PROFILE/deps`).
fn path() -> PathBuf {
    let this = std::env::current_exe().unwrap();
    this.with_file_name("libnrt.so")
}

/// Runs one of the cases below in a process with these variables.
fn case(name: &str, variables: &[(&str, &str)]) -> Output {
    let directory = tempfile::tempdir().unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--ignored", "--exact", "--nocapture", name]);
    command.env("FAKE_NRT_DIR", directory.path());
    command
        .env("FAKE_NRT_EXECUTE", "skip")
        .env("NEURON_RT_VISIBLE_CORES", "0-1");
    command.envs(variables.iter().copied());
    command.output().unwrap()
}

#[track_caller]
fn assert_passes(output: &Output) {
    let text = String::from_utf8_lossy(&output.stderr);
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success() && told.contains("1 passed"),
        "{told}\n{text}"
    );
}

#[track_caller]
fn assert_aborts(output: &Output, words: &str) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && text.contains(words),
        "{words:?} is not in: {text}"
    );
}

fn open() -> Library {
    // SAFETY: it is the library that was built with this test.
    unsafe { Library::open(Some(&path())) }.unwrap()
}

/// Calls a function of the library.
macro_rules! call {
    ($library:expr, $name:ident($($argument:expr),*)) => {{
        let function = $library.nrt().$name.as_ref().unwrap();
        // SAFETY: the arguments are what the function's declaration says, and alive.
        unsafe { function($($argument),*) }
    }};
}

fn init(library: &Library) -> u32 {
    call!(
        library,
        nrt_init(sys::NRT_FRAMEWORK_TYPE_NO_FW, c"".as_ptr(), c"".as_ptr())
    )
}

fn allocate(library: &Library) -> *mut sys::nrt_tensor_t {
    let mut tensor = ptr::null_mut();
    let placement = sys::NRT_TENSOR_PLACEMENT_DEVICE;
    let status = call!(
        library,
        nrt_tensor_allocate(placement, 0, 16, c"tensor".as_ptr(), &raw mut tensor)
    );
    assert_eq!(status, sys::NRT_SUCCESS);
    tensor
}

#[test]
fn a_model_lives_through_c() {
    assert_passes(&case("cases::a_model_lives", &[]));
}

#[test]
fn a_model_computes_through_c() {
    if std::env::var_os("APPLIANCE_XLA_CPU").is_none() {
        eprintln!("skipped: APPLIANCE_XLA_CPU names no plugin; `make test` sets it");
        return;
    }
    assert_passes(&case(
        "cases::a_model_lives",
        &[("FAKE_NRT_EXECUTE", "run")],
    ));
}

#[test]
fn the_machine_is_told_before_init() {
    assert_passes(&case("cases::before_init", &[]));
}

#[test]
fn the_version_is_configured() {
    let old = [("FAKE_NRT_VERSION", "2.29.1.5")];
    assert_passes(&case("cases::the_old_version", &old));
}

#[test]
fn another_process_has_the_cores() {
    assert_passes(&case("cases::cores_are_shared_with_a_child", &[]));
}

#[test]
fn misuse_ends_the_process() {
    assert_aborts(
        &case("cases::freed_twice", &[]),
        "tensor after it was freed",
    );
    assert_aborts(&case("cases::freed_in_a_set", &[]), "still in a tensor set");
    assert_aborts(
        &case("cases::a_list_is_left", &[("FAKE_NRT_LEAKS", "abort")]),
        "a list of",
    );
    assert_passes(&case("cases::a_list_is_left", &[]));
}

#[test]
fn a_variable_that_is_none_is_refused() {
    let typing_error = [("FAKE_NRT_LATENCY", "5")];
    let output = case("cases::a_model_lives", &typing_error);
    assert_aborts(&output, "FAKE_NRT_LATENCY");
}

/// What runs in a process of its own.
mod cases {
    use super::*;

    fn neff() -> Vec<u8> {
        Neff::write(&sample::counter("c", 1), &sample::info("trn2", 2, 1)).unwrap()
    }

    fn load(library: &Library) -> *mut sys::nrt_model_t {
        let neff = neff();
        let mut model = ptr::null_mut();
        let bytes: *const c_void = neff.as_ptr().cast();
        let status = call!(library, nrt_load(bytes, neff.len(), 0, -1, &raw mut model));
        assert_eq!(status, sys::NRT_SUCCESS);
        model
    }

    fn list(library: &Library, model: *mut sys::nrt_model_t) -> *mut sys::nrt_tensor_info_array_t {
        let mut list = ptr::null_mut();
        assert_eq!(
            call!(library, nrt_get_model_tensor_info(model, &raw mut list)),
            0
        );
        list
    }

    #[test]
    #[ignore = "a case of another test"]
    fn before_init() {
        let library = open();
        let mut count = 0;
        assert_eq!(call!(library, nrt_get_total_vnc_count(&raw mut count)), 0);
        assert_eq!(count, 4);
        assert_eq!(call!(library, nrt_get_visible_nc_count(&raw mut count)), 0);
        assert_eq!(count, 2);
        // SAFETY: all zeros are a value of it.
        let mut info: sys::nrt_instance_info_t = unsafe { std::mem::zeroed() };
        assert_eq!(
            call!(
                library,
                nrt_get_instance_info(&raw mut info, size_of_val(&info))
            ),
            0
        );
        assert_eq!(
            (info.family, info.size),
            (sys::NRT_INSTANCE_TRN2, sys::NRT_INSTANCE_SIZE_3XL)
        );
        assert_eq!(
            call!(library, nrt_get_instance_info(&raw mut info, 8)),
            sys::NRT_INVALID
        );
        let mut set = ptr::null_mut();
        let status = call!(library, nrt_allocate_tensor_set(&raw mut set));
        assert_eq!(status, sys::NRT_UNINITIALIZED);
        let text = call!(library, nrt_get_status_as_str(sys::NRT_RESOURCE));
        // SAFETY: the library gives a string that ends with a zero.
        assert_eq!(unsafe { CStr::from_ptr(text) }, c"Allocation Failure");
        assert!(library.asynchronous().is_none());
    }

    #[test]
    #[ignore = "a case of another test"]
    fn the_old_version() {
        let library = open();
        let version = library.version().to_string();
        assert!(version.contains("2.29.1"), "{version}");
    }

    #[test]
    #[ignore = "a case of another test"]
    fn a_model_lives() {
        let library = open();
        assert_eq!(init(&library), 0, "nrt_init");
        assert_eq!(init(&library), sys::NRT_INVALID);
        let mut model = load(&library);
        let infos = list(&library, model);
        // SAFETY: the library gives a list of as many entries as it says.
        let infos_of = unsafe {
            (*infos)
                .tensor_array
                .as_slice(usize::try_from((*infos).tensor_count).unwrap())
        };
        assert_eq!(infos_of.len(), 4);
        let mut sets = [ptr::null_mut(); 2];
        for set in &mut sets {
            assert_eq!(call!(library, nrt_allocate_tensor_set(set)), 0);
        }
        let tensors = [0; 3].map(|_| allocate(&library));
        let [x, state, sum] = tensors;
        let one: Vec<u8> = [1.0_f32; 4]
            .iter()
            .flat_map(|one| one.to_le_bytes())
            .collect();
        for tensor in [x, state] {
            assert_eq!(
                call!(
                    library,
                    nrt_tensor_write(tensor, one.as_ptr().cast(), 0, 16)
                ),
                0
            );
        }
        for (info, tensor) in infos_of.iter().zip([x, state, sum, state]) {
            assert_eq!(
                (info.size, info.ndim, info.dtype),
                (16, 1, sys::NRT_DTYPE_FLOAT32)
            );
            // SAFETY: the library gives as many sizes as dimensions.
            assert_eq!(unsafe { *info.shape }, 4);
            let set = sets[info.usage as usize];
            let name = info.name.as_ptr();
            assert_eq!(
                call!(library, nrt_add_tensor_to_tensor_set(set, name, tensor)),
                0
            );
        }
        assert_eq!(call!(library, nrt_free_model_tensor_info(infos)), 0);
        assert_eq!(call!(library, nrt_execute(model, sets[0], sets[1])), 0);
        let mut result = [0_f32; 4];
        assert_eq!(
            call!(
                library,
                nrt_tensor_read(sum, result.as_mut_ptr().cast(), 0, 16)
            ),
            0
        );
        let computed = std::env::var("FAKE_NRT_EXECUTE").unwrap() == "run";
        assert_eq!(result, [if computed { 2.0 } else { 0.0 }; 4]);
        for set in &mut sets {
            call!(library, nrt_destroy_tensor_set(set));
            assert!(set.is_null());
        }
        for mut tensor in tensors {
            call!(library, nrt_tensor_free(&raw mut tensor));
        }
        assert_eq!(call!(library, nrt_unload(model)), 0);
        call!(library, nrt_close());
        assert_eq!(call!(library, nrt_unload(model)), sys::NRT_CLOSED);
        model = ptr::null_mut();
        assert_eq!(call!(library, nrt_unload(model)), sys::NRT_CLOSED);
        assert_eq!(init(&library), sys::NRT_CLOSED);
    }

    #[test]
    #[ignore = "a case of another test"]
    fn cores_are_shared_with_a_child() {
        let library = open();
        assert_eq!(init(&library), 0);
        let child = |cores: &str| {
            let mut command = Command::new(std::env::current_exe().unwrap());
            command.args(["--ignored", "--exact", "--nocapture", "cases::init_and_end"]);
            command
                .env("NEURON_RT_VISIBLE_CORES", cores)
                .output()
                .unwrap()
        };
        assert_aborts(&child("1-2"), "Logical Neuron Core(s) not available");
        assert_passes(&child("2-3"));
    }

    #[test]
    #[ignore = "a case of another test"]
    fn init_and_end() {
        assert_eq!(init(&open()), 0);
    }

    #[test]
    #[ignore = "a case of another test"]
    fn freed_twice() {
        let library = open();
        assert_eq!(init(&library), 0);
        let mut tensor = allocate(&library);
        let mut again = tensor;
        call!(library, nrt_tensor_free(&raw mut tensor));
        call!(library, nrt_tensor_free(&raw mut tensor));
        call!(library, nrt_tensor_free(&raw mut again));
    }

    #[test]
    #[ignore = "a case of another test"]
    fn freed_in_a_set() {
        let library = open();
        assert_eq!(init(&library), 0);
        let mut set = ptr::null_mut();
        assert_eq!(call!(library, nrt_allocate_tensor_set(&raw mut set)), 0);
        let mut tensor = allocate(&library);
        assert_eq!(
            call!(
                library,
                nrt_add_tensor_to_tensor_set(set, c"x".as_ptr(), tensor)
            ),
            0
        );
        let wrong = call!(
            library,
            nrt_add_tensor_to_tensor_set(tensor.cast(), c"x".as_ptr(), tensor)
        );
        assert_eq!(wrong, sys::NRT_INVALID_HANDLE);
        call!(library, nrt_tensor_free(&raw mut tensor));
    }

    #[test]
    #[ignore = "a case of another test"]
    fn a_list_is_left() {
        let library = open();
        assert_eq!(init(&library), 0);
        let model = load(&library);
        let _left = list(&library, model);
        assert_eq!(call!(library, nrt_unload(model)), 0);
        call!(library, nrt_close());
    }
}
