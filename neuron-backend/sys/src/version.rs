//! Which runtime it is.

use std::fmt;
use std::num::ParseIntError;
use std::str::FromStr;

/// A version of the runtime, in its own order: `2.34.10.0`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Version {
    /// Changes with everything.
    pub major: u64,
    /// Changes with each SDK.
    pub minor: u64,
    /// Changes with each build that is given out.
    pub patch: u64,
    /// Changes with repairs.
    pub maintenance: u64,
}

impl Version {
    /// `major.minor` and zeros.
    pub const fn new(major: u64, minor: u64) -> Self {
        Self {
            major,
            minor,
            patch: 0,
            maintenance: 0,
        }
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            major,
            minor,
            patch,
            maintenance,
        } = self;
        write!(f, "{major}.{minor}.{patch}.{maintenance}")
    }
}

impl FromStr for Version {
    type Err = ParseIntError;

    /// Reads up to four numbers; those that are missing are zero.
    fn from_str(text: &str) -> Result<Self, ParseIntError> {
        let mut numbers = text.splitn(4, '.');
        let mut next = || numbers.next().map_or(Ok(0), str::parse);
        Ok(Self {
            major: next()?,
            minor: next()?,
            patch: next()?,
            maintenance: next()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_number_by_number() {
        let older: Version = "2.9.30".parse().expect("three numbers");
        let newer: Version = "2.34.10.0".parse().expect("four numbers");
        assert!(older < newer);
        assert!(Version::new(2, 34) < newer);
        assert_eq!(newer.to_string(), "2.34.10.0");
    }

    #[test]
    fn what_is_no_version_is_refused() {
        for text in ["", "2.x", "2.34.10.0.1", "-1"] {
            assert!(text.parse::<Version>().is_err(), "{text}");
        }
    }
}
