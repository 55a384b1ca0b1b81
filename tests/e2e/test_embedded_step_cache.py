"""The embedded model ships with a calibration of its own weights."""

import skyreels_rt as rt


def test_demo_is_calibrated_for_its_weights():
    parts = rt.Engine.from_pretrained("demo").components
    assert parts.calibration is not None, "run `skyreels-rt calibrate demo`"
    assert parts.calibration.run.weights == parts.transformer.time_digest(), (
        "other weights: run `skyreels-rt calibrate demo` again"
    )
    twenty = {"num_steps": 20, "teacache": rt.TeaCache()}
    assert rt.Engine(parts).estimate(5.0, **twenty).residuals > 0
