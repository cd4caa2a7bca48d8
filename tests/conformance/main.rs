//! What every device must do: one list of checks, run for each backend.

mod checks;
mod device;
mod golden;
mod neuron;

use appliance_tests::Model;
use device::Device;

/// A check, and what it is called.
type Check = (&'static str, fn(&mut Device));

/// All checks, as a list and as a test each on the CPU.
macro_rules! checks {
    ($($check:ident,)*) => {
        const CHECKS: &[Check] = &[$((stringify!($check), checks::$check)),*];

        mod cpu {
            $(
                #[test]
                fn $check() {
                    crate::checks::$check(&mut crate::cpu());
                }
            )*
        }
    };
}

checks!(
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

/// The CPU backend promises the same to the bit.
fn cpu() -> Device {
    let precision = cpu_backend::Precision::Bf16;
    Device::new(golden::open_cpu(&Model::random().path, precision), 0.0)
}
