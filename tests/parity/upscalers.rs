//! RRDBNet against torch, and its tiles against the whole.

use std::{collections::BTreeMap, ops::ControlFlow};

use diffused::{
    engine::{
        Backend,
        upscale::{Tiling, Upscaler},
    },
    image::Rgb,
    modes::CheckpointRef,
};
use safetensors::{SafeTensors, tensor::TensorView};

use crate::golden::{Tensors, assert_close, folder};

fn model(name: &str) -> CheckpointRef {
    let path = folder().join(format!("upscalers/{name}.safetensors"));
    CheckpointRef { name: name.to_owned(), path }
}

fn upscaler(backend: Backend, name: &str) -> Upscaler {
    Upscaler::load_on(backend, &model(name)).unwrap()
}

fn assert_golden(net: &str, upscaler: &Upscaler) {
    let tensors = Tensors::open("upscalers/golden.safetensors");
    let sizes: &[&str] = match net {
        "x4" => &["12x20", "5x3"],
        "x2" => &["12x10"],
        _ => &["12x20"],
    };
    for size in sizes {
        let part = |part: &str| tensors.get(&format!("{net}.{size}.{part}"));
        let (found, expected) = (upscaler.net().forward(&part("image")).unwrap(), part("out"));
        assert_eq!(found.dims(), expected.dims(), "{net} {size}");
        let (found, expected) = (found.to_vec().unwrap(), expected.to_vec().unwrap());
        assert_close(&format!("{net} {size}"), &found, &expected, 1e-5);
    }
}

#[test]
fn upscalers_are_the_references() {
    for (net, scale) in [("x4", 4), ("x2", 2), ("x1", 1)] {
        for backend in Backend::all_exact() {
            let upscaler = upscaler(backend, net);
            assert_eq!(upscaler.net().scale(), scale);
            assert_golden(net, &upscaler);
        }
    }
}

#[test]
fn both_of_esrgans_own_namings_are_read() {
    let bytes = std::fs::read(model("x4").path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let in_body = |name: &str, trunk: &str, end: &str| {
        let [_, block, rdb, conv, kind] = name.split('.').collect::<Vec<_>>()[..] else { panic!() };
        format!("{trunk}.{block}.{}.{conv}{end}.{kind}", rdb.to_uppercase())
    };
    let by_trunk = |name: &str| {
        if name.starts_with("body.") {
            return in_body(name, "RRDB_trunk", "");
        }
        let renamed = name.replace("conv_body", "trunk_conv").replace("conv_hr", "HRconv");
        renamed.replace("conv_up", "upconv")
    };
    let by_number = |name: &str| {
        if name.starts_with("body.") {
            return in_body(name, "model.1.sub", ".0");
        }
        let numbers = [("first", "0"), ("body", "1.sub.2"), ("up1", "3"), ("up2", "6")];
        let numbers = numbers.iter().chain(&[("hr", "8"), ("last", "10")]);
        let rename = |name: String, (conv, number): &(&str, &str)| {
            name.replace(&format!("conv_{conv}."), &format!("model.{number}."))
        };
        numbers.fold(name.to_owned(), rename)
    };
    let folder = tempfile::tempdir().unwrap();
    for renamed in [&by_trunk as &dyn Fn(&str) -> String, &by_number] {
        let renamed: BTreeMap<String, TensorView> =
            tensors.iter().map(|(name, view)| (renamed(name), view)).collect();
        let path = folder.path().join("renamed.safetensors");
        safetensors::serialize_to_file(renamed, None, &path).unwrap();
        let model = CheckpointRef { name: "renamed".to_owned(), path };
        assert_golden("x4", &Upscaler::load(&model).unwrap());
    }
}

#[test]
fn what_is_no_upscaler_says_what_is_wrong() {
    let temporary = tempfile::tempdir().unwrap();
    let bytes = std::fs::read(model("x2").path).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let file = |name: &str, keep: &dyn Fn(&str) -> bool| {
        let kept = tensors.iter().filter(|(name, _)| keep(name));
        let path = temporary.path().join(name);
        safetensors::serialize_to_file(kept, None, &path).unwrap();
        path
    };
    let pickled = temporary.path().join("x.pth");
    std::fs::write(&pickled, b"PK\x03\x04 and so on").unwrap();
    for (path, expected) in [
        (pickled, "is a pickled checkpoint (.ckpt, .pt), which may run code when it is opened"),
        (folder().join("tiny-sd15.safetensors"), "holds no upscaler that is known here"),
        (
            file("cut.safetensors", &|name| !name.contains("conv_hr.w")),
            "the tensor 'params_ema.conv_hr.weight' is missing",
        ),
        (
            file("less.safetensors", &|name| !name.contains("rdb3.conv2.bias")),
            "the tensor 'params_ema.body.0.rdb3.conv2.bias' is missing",
        ),
        (temporary.path().join("gone"), "cannot be read"),
    ] {
        let model = CheckpointRef { name: "my/model".to_owned(), path };
        let error = Upscaler::load(&model).err().expect(expected).to_string();
        assert!(error.starts_with("my/model: ") && error.contains(expected), "{error}");
    }
}

/// What a tile does not see of its surroundings makes no difference that a byte could show. The two
/// blocks here see 40 pixels far, a real one's 23 see 350; but what is far counts for next to nothing.
#[test]
fn tiles_make_the_whole() {
    for (name, width, height) in [("x4", 131, 70), ("x2", 67, 94), ("x1", 50, 70)] {
        let upscaler = upscaler(Backend::Cpu, name);
        let bytes: Vec<u8> =
            (0..3 * width * height).map(|i| (i * 97 % 251 * i % 241) as u8).collect();
        let image = Rgb { width, height, bytes: &bytes };
        let run = |tiling| {
            let mut tiles = 0;
            let mut on_tile = || {
                tiles += 1;
                ControlFlow::Continue(())
            };
            (upscaler.run(image, tiling, &mut on_tile).unwrap(), tiles)
        };
        let (whole, one) = run(Tiling { tile: 4096, halo: 16 });
        let (tiled, many) = run(Tiling { tile: 32, ..Tiling::DEFAULT });
        assert_eq!((one, many > 5), (1, true), "{name}: {many} tiles");
        let scale = upscaler.net().scale() as u32;
        assert_eq!((tiled.width, tiled.height), (width * scale, height * scale));
        let apart = whole.bytes.iter().zip(&tiled.bytes).map(|(a, b)| a.abs_diff(*b)).max();
        assert!(apart <= Some(1), "{name}: {apart:?} levels");
    }
}
