//! What every device must do: one list of checks, run for each backend.

mod checks;
mod device;
mod golden;
mod neuron;

use appliance_tests::Model;
use device::Device;

/// Runs all checks by `$run`, which takes the name of the test and the check and gives it a device.
macro_rules! conformance {
    ($device:ident, $run:path) => {
        mod $device {
            conformance!(
                $device, $run,
                alone_or_in_company_is_the_same,
                a_copied_page_is_as_good,
                a_mask_shares_the_probability_among_the_allowed,
                a_rejected_step_leaves_the_device_usable,
                a_shared_prefix_is_as_good_as_an_own_one,
                a_used_page_is_as_good_as_a_new_one,
                chunks_of_a_prompt_do_not_matter,
                each_position_is_scored_as_if_asked_alone,
                steps_are_collected_once_and_in_order,
                the_best_are_the_best_of_all,
                the_order_of_pages_is_free,
                what_is_not_asked_is_not_answered,
            );
        }
    };
    ($device:ident, $run:path, $($check:ident,)*) => {
        $(
            #[test]
            fn $check() {
                let name = concat!(stringify!($device), "::", stringify!($check));
                $run(name, crate::checks::$check);
            }
        )*
    };
}

conformance!(cpu, crate::cpu);
conformance!(neuron_on_one_rank, crate::neuron::one);
conformance!(neuron_on_two_ranks, crate::neuron::two);
conformance!(neuron_on_four_ranks, crate::neuron::four);
conformance!(neuron_in_bf16, crate::neuron::bf16);

/// The CPU backend promises the same to the bit.
fn cpu(_: &str, check: fn(&mut Device)) {
    let precision = cpu_backend::Precision::Bf16;
    let backend = golden::open_cpu(&Model::random().path, precision);
    check(&mut Device::new(backend, 0.0));
}
