//! The keys `scheduling`, `max_wait` and `fair`: in what order work is done.

use super::{flag, parsed};
use crate::{
    config::reader::{Errors, Table},
    modes::Order,
};

/// A wrong value is reported and stands as its default: nothing is made of it afterwards.
pub fn order(root: &Table, errors: &mut Errors) -> Order {
    let other = Order::default();
    Order {
        scheduling: parsed(root, "scheduling", errors).unwrap_or(other.scheduling),
        max_wait: parsed(root, "max_wait", errors).unwrap_or(other.max_wait),
        fair: flag(root, "fair", errors).unwrap_or(other.fair),
    }
}
