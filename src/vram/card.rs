//! What is made of a card's figures: pure functions.

use super::GpuInfo;

/// A worker that holds nothing may keep so much of the card, as a part of it, and is started anew
/// where it keeps more.
const MAY_KEEP: u64 = 50;

/// The card's number on a device called `cuda:1`.
pub fn number(device: &str) -> Option<u32> {
    device.strip_prefix("cuda:")?.parse().ok()
}

/// What the worker may allocate of a card in all, if it has `reserved` bytes of it now: what is there
/// and neither others use nor what stands beside its allocations (the driver's context, libraries).
pub fn available(card: &GpuInfo, reserved: u64) -> u64 {
    // Where the driver does not say what a process holds, it is what the worker says itself: its
    // context counts as somebody else's then.
    let its_own = card.worker_bytes.unwrap_or(reserved).max(reserved);
    let others = card.used_bytes.saturating_sub(its_own);
    card.total_bytes.saturating_sub(others).saturating_sub(its_own - reserved)
}

/// Whether a worker that holds nothing keeps more than it may.
pub fn keeps_too_much(reserved: u64, total: u64) -> bool {
    total > 0 && reserved > total / MAY_KEEP
}

/// By what number CUDA calls each card that the driver lists, if it shows it; `visible` is
/// `CUDA_VISIBLE_DEVICES`: the cards' numbers or the beginnings of their UUIDs, up to the first one
/// that there is not. (Parts of a card, `MIG-…`, have no figures of their own here.)
pub fn cuda_numbers(uuids: &[String], visible: Option<&str>) -> Vec<Option<u32>> {
    let Some(visible) = visible else {
        return (0..).map(Some).take(uuids.len()).collect();
    };
    let mut numbers = vec![None; uuids.len()];
    for (number, name) in (0..).zip(visible.split(',').map(str::trim)) {
        let by_uuid = || {
            let mut meant = (0..uuids.len()).filter(|card| uuids[*card].starts_with(name));
            meant.next().filter(|_| name.starts_with("GPU-") && meant.next().is_none())
        };
        let by_number = name.parse().ok().filter(|card| *card < uuids.len());
        let Some(card) = by_number.or_else(by_uuid) else { break };
        if numbers[card].is_none() {
            numbers[card] = Some(number);
        }
    }
    numbers
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_worker_may_have_what_nobody_else_has() {
        // total, used, the worker's by the driver, its reserved bytes.
        for (what, total, used, worker, reserved, expected) in [
            ("nobody uses it", 80, 0, None, 0, 80),
            ("others use some", 80, 30, None, 0, 50),
            ("what it has is its own", 80, 30, None, 20, 70),
            ("its context can not be allocated from", 80, 31, Some(21), 20, 69),
            ("nor before it has anything", 80, 1, Some(1), 0, 79),
            ("the driver's figure is older than its own", 80, 5, Some(5), 20, 80),
            ("and so is all of it", 80, 5, None, 20, 80),
            ("others use all of it", 80, 80, Some(1), 0, 0),
            ("nothing is known", 0, 0, None, 0, 0),
        ] {
            let card = GpuInfo {
                total_bytes: total,
                used_bytes: used,
                worker_bytes: worker,
                ..GpuInfo::default()
            };
            assert_eq!(available(&card, reserved), expected, "{what}");
        }
    }

    #[test]
    fn what_an_allocator_keeps_is_measured_by_the_card() {
        for (reserved, total, expected) in
            [(0, 1000, false), (20, 1000, false), (21, 1000, true), (21, 0, false)]
        {
            assert_eq!(keeps_too_much(reserved, total), expected, "{reserved} of {total}");
        }
    }

    #[test]
    fn cards_are_found_by_what_cuda_calls_them() {
        let uuids = ["GPU-aa1", "GPU-ab2", "GPU-b"].map(str::to_owned);
        for (visible, expected) in [
            (None, [Some(0), Some(1), Some(2)]),
            (Some("2,0"), [Some(1), None, Some(0)]),
            (Some(" 1 , GPU-b"), [None, Some(0), Some(1)]),
            (Some("GPU-ab"), [None, Some(0), None]),
            // More than one begins like that; and behind what is not there nothing is seen.
            (Some("GPU-a,0"), [None; 3]),
            (Some("1,7,0"), [None, Some(0), None]),
            (Some("-1"), [None; 3]),
            (Some(""), [None; 3]),
            (Some("MIG-b/1/0"), [None; 3]),
            (Some("1,1"), [None, Some(0), None]),
        ] {
            assert_eq!(cuda_numbers(&uuids, visible), expected, "{visible:?}");
        }
    }

    #[test]
    fn a_device_is_a_card_or_not() {
        for (device, expected) in [
            ("cuda:0", Some(0)),
            ("cuda:11", Some(11)),
            ("cpu", None),
            ("metal", None),
            ("auto", None),
        ] {
            assert_eq!(number(device), expected, "{device}");
        }
    }
}
