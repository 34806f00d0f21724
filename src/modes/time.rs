//! Spans of time as users write them.

use std::{fmt, str::FromStr, time::Duration};

use serde::{Deserialize, Serialize};

/// `90s`, `10m`, `2h`, `7d`; never nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Time(Duration);

impl Time {
    pub const fn of_secs(seconds: u32) -> Self {
        Self(Duration::from_secs(seconds as u64))
    }

    pub fn duration(self) -> Duration {
        self.0
    }
}

/// How long something may take: `90s`, `10m`, `2h`, `off` or `auto`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Timeout {
    /// As the measured pace allows; of a mode: as the top level says.
    #[default]
    Auto,
    Off,
    After(Time),
}

impl Timeout {
    pub fn secs(self) -> Option<u32> {
        match self {
            Self::Auto | Self::Off => None,
            Self::After(time) => Some(u32::try_from(time.0.as_secs()).unwrap_or(u32::MAX)),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a time: write 90s, 10m, 2h or 7d, off or auto")]
pub struct InvalidTimeout(String);

impl FromStr for Timeout {
    type Err = InvalidTimeout;

    fn from_str(text: &str) -> Result<Self, InvalidTimeout> {
        match text.trim() {
            "auto" => Ok(Self::Auto),
            "off" => Ok(Self::Off),
            time => time.parse().map(Self::After).map_err(|_| InvalidTimeout(text.to_owned())),
        }
    }
}

impl TryFrom<String> for Timeout {
    type Error = InvalidTimeout;

    fn try_from(text: String) -> Result<Self, InvalidTimeout> {
        text.parse()
    }
}

impl From<Timeout> for String {
    fn from(timeout: Timeout) -> Self {
        timeout.to_string()
    }
}

impl fmt::Display for Timeout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Off => f.write_str("off"),
            Self::After(time) => time.fmt(f),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not a time: write 90s, 10m, 2h or 7d")]
pub struct InvalidTime(pub String);

impl FromStr for Time {
    type Err = InvalidTime;

    fn from_str(text: &str) -> Result<Self, InvalidTime> {
        let invalid = || InvalidTime(text.to_owned());
        let text = text.trim();
        let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(0));
        let seconds = match unit.trim() {
            "s" => 1,
            "m" => 60,
            "h" => 3600,
            "d" => 86_400,
            _ => return Err(invalid()),
        };
        let number: u32 = number.parse().map_err(|_| invalid())?;
        match number {
            0 => Err(invalid()),
            number => Ok(Self(Duration::from_secs(u64::from(number) * seconds))),
        }
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}s", self.0.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (text, seconds) in
            [("90s", 90), (" 10m ", 600), ("2 h", 7200), ("1s", 1), ("7d", 604_800)]
        {
            assert_eq!(text.parse(), Ok(Time::of_secs(seconds)), "{text}");
        }
        for text in ["", "10", "m", "0s", "-1s", "1.5h", "10y", "99999999999s", "off"] {
            assert_eq!(text.parse::<Time>(), Err(InvalidTime(text.to_owned())));
        }
        for (text, secs) in
            [("off", None), ("auto", None), (" 10m", Some(600)), ("4294967295s", Some(u32::MAX))]
        {
            let timeout: Timeout = text.parse().unwrap();
            assert_eq!((timeout.secs(), timeout.to_string().parse()), (secs, Ok(timeout)));
        }
        assert_eq!("4294967295h".parse::<Timeout>().unwrap().secs(), Some(u32::MAX));
        assert_eq!("none".parse::<Timeout>(), Err(InvalidTimeout("none".to_owned())));
        assert_eq!("10m".parse::<Time>().unwrap().to_string(), "600s");
    }
}
