"""For Slicer's test runner: the sample study is loaded and read by the built-in model, where the models are set up."""

from __future__ import annotations

import json
import time
import unittest

import slicer

from MedVLMReaderLib.resources import resource

LATELY_S = 600


class MedVLMReaderSampleTest(unittest.TestCase):
    """Needs torch in the Python that reads; without it the test is skipped, for a test may not install anything."""

    def setUp(self):
        slicer.mrmlScene.Clear(0)
        self.widget = slicer.modules.medvlmreader.widgetRepresentation().self()

    def test_the_sample_gives_the_report_that_was_shipped_with_it(self):
        self.until(lambda: not self.widget.set_up.setting_up.busy)
        self.widget.set_up.setting_up.look()
        self.until(lambda: not self.widget.set_up.setting_up.busy)
        if self.widget.set_up.setting_up.shown().stage != "ready":
            self.skipTest(f"not set up: {self.widget.set_up.setting_up.shown().headline}")
        node = self.load()
        self.widget.panel.choose_scan(node)
        self.widget.read()
        self.until(lambda: bool(self.widget.panel.case.kept) or bool(self.widget.panel.message))
        self.assertEqual(self.widget.panel.message, "")
        expected = json.loads(resource("sample/reference.json").read_text())["text"]
        self.assertEqual(self.widget.panel.case.kept[0].turn.reading.text, expected)

    def load(self):
        import SampleData

        return SampleData.downloadSample("MedVLMSample")

    def until(self, done):
        end = time.monotonic() + LATELY_S
        while not done():
            self.assertLess(time.monotonic(), end, "it took too long")
            slicer.app.processEvents()
            time.sleep(0.01)


if __name__ == "__main__":
    unittest.main()
