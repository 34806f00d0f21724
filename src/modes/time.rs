//! Spans of time as users write them.

use std::{fmt, str::FromStr, time::Duration};

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
        assert_eq!("10m".parse::<Time>().unwrap().to_string(), "600s");
    }
}
